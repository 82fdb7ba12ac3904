"""Entry point of ``qanat``."""

from __future__ import annotations

from tunnel_core.runtime.startup import prepare_process


def entry_point() -> None:
    """Run ``qanat``."""
    prepare_process()
    from tunnel_client import main

    main.entry_point()
