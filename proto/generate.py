"""Writes ``tunnel_core/wire/pb`` from ``tunnel.proto``; ``--check`` says whether it is current."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "proto" / "qanat" / "v1"
TARGET = ROOT / "tunnel_core" / "wire" / "pb"


def run_protoc(*options: str) -> None:
    """Raises ``SystemExit`` with protoc's status if it fails; it has said why by then."""
    if status := protoc.main(["protoc", f"-I{SOURCE}", *options, "tunnel.proto"]):
        raise SystemExit(status)


def is_current() -> bool:
    """Whether the generated module describes what the source says now.

    Descriptors are compared rather than files, because each version of protoc writes the same
    description with other imports and another version line.
    """
    sys.path.insert(0, str(ROOT))
    from tunnel_core.wire.pb import tunnel_pb2

    with tempfile.NamedTemporaryFile() as file:
        run_protoc(f"--descriptor_set_out={file.name}")
        fresh = FileDescriptorSet.FromString(file.read()).file[0]
    generated = FileDescriptorProto.FromString(tunnel_pb2.DESCRIPTOR.serialized_pb)
    _forget_json_names(fresh)
    return fresh == generated


def _forget_json_names(file: FileDescriptorProto) -> None:
    """protoc spells them out in a descriptor set and leaves them out of generated code."""
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")


def main(arguments: list[str]) -> int:
    if arguments == ["--check"]:
        if is_current():
            return 0
        sys.stderr.write("tunnel_core/wire/pb is not current: run .venv/bin/python proto/generate.py\n")
        return 1
    if arguments:
        sys.stderr.write("usage: proto/generate.py [--check]\n")
        return 2
    run_protoc(f"--python_out={TARGET}", f"--pyi_out={TARGET}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
