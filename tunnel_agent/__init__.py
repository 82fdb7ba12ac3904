"""The edge program: it dials out to the server, checks its allow-list and dials targets."""
