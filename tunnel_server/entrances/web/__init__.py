"""The ``web`` entrance: dashboards of edge nodes in a browser, each under a virtual host of its own."""

from tunnel_server.entrances.web.entrance import ENTRANCE, WebEntrance, refuse_open_web

__all__ = ["ENTRANCE", "WebEntrance", "refuse_open_web"]
