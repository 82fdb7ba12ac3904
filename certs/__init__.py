"""The PKI: CA, leaves, bundles. Imports neither the server nor the agent."""
