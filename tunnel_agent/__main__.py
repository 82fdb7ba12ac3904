"""Run ``qanat-agent`` by its module, as a running agent does for a renewal, wherever the script is."""

from tunnel_agent.entry import entry_point

entry_point()
