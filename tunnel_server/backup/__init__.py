"""One file that a server can be made of again: its store, authority, certificates and configuration."""
