"""``collector_off.py SOCKET MODULE ARGUMENTS``: run a program with the garbage collector off.

MODULE has the program's ``entry_point``. SOCKET is the path of a unix socket. Each connection to it receives
a JSON object: the objects that only the collector would free, counted by type. They are freed then.
"""

from __future__ import annotations

import gc
import importlib
import json
import socket
import sys
import threading
from collections import Counter


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(json.dumps(_left_to_the_collector()).encode())


def _left_to_the_collector() -> Counter[str]:
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.garbage)
    gc.garbage.clear()
    gc.collect()  # otherwise the next call would find them again
    return found


def main() -> None:
    """Run the program that the arguments name."""
    path, module = sys.argv[1:3]
    sys.argv[:3] = [module]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    gc.disable()
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    importlib.import_module(module).entry_point()


if __name__ == "__main__":
    main()
