"""The doors through which users come in."""
