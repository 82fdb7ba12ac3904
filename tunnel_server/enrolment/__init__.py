"""How nodes get certificates from this server, and nodes and users their next ones."""
