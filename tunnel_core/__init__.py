"""The code that both ends of the tunnel must agree on. Imports neither the server nor the agent."""
