"""The cloud program: entrances, routing, nodes."""
