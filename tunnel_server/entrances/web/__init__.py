"""The ``web`` entrance: HTTP services of nodes in a browser, each under its own virtual host."""
