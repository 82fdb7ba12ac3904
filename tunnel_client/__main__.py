"""``python -m tunnel_client``: the same as ``qanat``."""

from tunnel_client.main import entry_point

entry_point()
