"""The ``web`` entrance: dashboards of edge nodes in a browser, each under a virtual host of its own."""
