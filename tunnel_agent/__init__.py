"""The edge program: dials out, checks its allow-list, dials targets."""
