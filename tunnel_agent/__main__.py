"""``python -m tunnel_agent``, with which the running agent starts a renewal, wherever its script is."""

from tunnel_agent.entry import entry_point

entry_point()
