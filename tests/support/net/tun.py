"""One TUN interface: IP packets of a network namespace as reads and writes of a descriptor.

With offloads on, the kernel passes up to 64 KiB of a TCP flow as one frame, which it would otherwise
cut into packets first. So plain Python carries more than a gigabit per second. The virtio header before
each frame describes how to cut it, and is passed to the other end unchanged.
"""

from __future__ import annotations

import fcntl
import os
import struct

from tests.support.net.direction import Frame
from tests.support.net.namespaces import Namespace

# linux/if_tun.h and linux/virtio_net.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_CHECKSUM, _TCP4, _TCP6 = 0x01, 0x02, 0x04
_VIRTIO = struct.Struct("=BBHHHH")
_MAX_FRAME = 65536 + _VIRTIO.size
_BATCH = 64


class Tun:
    """The interface ``name`` of ``namespace``. It exists while this object is open."""

    def __init__(self, namespace: Namespace, name: str) -> None:
        with namespace.entered():  # the interface belongs to the namespace in which the device was opened
            self._descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(self._descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))

    def fileno(self) -> int:
        return self._descriptor

    def set_offload(self, on: bool) -> None:
        """Set whether frames may be larger than a packet."""
        fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, _CHECKSUM | _TCP4 | _TCP6 if on else 0)

    def read_batch(self) -> list[Frame]:
        """Return packets that the namespace has sent; only a part of them if there are many."""
        frames: list[Frame] = []
        try:
            while len(frames) < _BATCH:
                frames.append(_frame(os.read(self._descriptor, _MAX_FRAME)))
        except BlockingIOError:
            pass
        return frames

    def write(self, frame: Frame) -> None:
        try:
            os.write(self._descriptor, frame.content)
        except OSError:  # the interface is down: the packet is lost, as on any network
            return


def _frame(content: bytes) -> Frame:
    _, kind, head_bytes, segment_bytes, _, _ = _VIRTIO.unpack_from(content)
    size = len(content) - _VIRTIO.size
    if not kind or not segment_bytes:
        return Frame(content, size)
    packets = max(1, -(-(size - head_bytes) // segment_bytes))
    return Frame(content, size + (packets - 1) * head_bytes, packets)
