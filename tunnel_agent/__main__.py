"""``python -m tunnel_agent``: how the running agent starts a renewal, wherever its script lies."""

from tunnel_agent.entry import entry_point

entry_point()
