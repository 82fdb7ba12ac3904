"""Backups: one file with a server's store, authority, certificates and configuration."""
