"""Fuzz one target for a time: ``python -m tests.fuzz.engine TARGET SECONDS SEED FOLDER``.

Seed 0 makes another order of inputs each time; any other seed repeats its order.

The exit code is 0 if no fault was found. New inputs go to ``FOLDER/found``, those with a fault to ``FOLDER``.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz import corpus

_OURS = ["tunnel_core", "tunnel_server", "tunnel_agent", "certs", "h11", "tests.fuzz.targets"]
_MAX_BYTES = 20 * 1024


def main(target: str, seconds: int, seed: int, folder: Path) -> None:
    if importlib.util.find_spec("atheris"):
        _with_atheris(target, seconds, seed, folder)
    else:
        _with_hypothesis(target, seconds, seed, folder)


def _with_atheris(target: str, seconds: int, seed: int, folder: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=_OURS):
        from tests.fuzz import targets
    options = [
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={_MAX_BYTES}",
        f"-artifact_prefix={folder}/",
        "-timeout=20",
        "-rss_limit_mb=4096",
        "-print_final_stats=1",
    ]
    atheris.Setup(
        [sys.argv[0], *options, str(folder / "found"), str(corpus.FOLDER / target)], targets.TARGETS[target]
    )
    atheris.Fuzz()


def _with_hypothesis(target: str, seconds: int, seed: int, folder: Path) -> None:
    import hypothesis
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    from tests.fuzz import targets

    check, known = targets.TARGETS[target], corpus.inputs_of(target)
    for data in known:
        check(data)
    count = 0

    @settings(max_examples=1000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=2000), st.builds(_changed, st.sampled_from(known), st.randoms())))
    def run(data: bytes) -> None:
        nonlocal count
        count += 1
        try:
            check(data)
        except BaseException:
            (folder / "crash").write_bytes(data)
            raise

    end = time.monotonic() + seconds
    seeds = itertools.count(seed or random.getrandbits(32))
    while time.monotonic() < end:
        hypothesis.seed(next(seeds))(run)()
    sys.stdout.write(f"{count} inputs, by hypothesis\n")


def _changed(data: bytes, chance: random.Random) -> bytes:
    """Return a known input with some bytes removed, doubled or replaced."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(changed))
        until = min(len(changed), at + chance.randint(0, 8))
        edits: list[Callable[[], bytes]] = [
            lambda: b"",
            lambda part=bytes(changed[at:until]): part * 2,
            lambda: chance.randbytes(chance.randint(1, 4)),
            lambda: chance.choice((b"\0", b"\r\n", b"%2e", b"..", b":", b"/", b"\xff" * 4)),
        ]
        changed[at:until] = chance.choice(edits)()
    return bytes(changed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    sys.stdout.flush()
    os._exit(0)  # nothing of a parser's is worth a tidy end
