"""What both ends of the tunnel must agree on. Imports neither the server nor the agent."""

__version__ = "0.1.0"
