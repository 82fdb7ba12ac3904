"""Defaults of the configuration that the health probe needs before it can load the configuration."""

from __future__ import annotations

OPS_LISTEN = "127.0.0.1:7005"
