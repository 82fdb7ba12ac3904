"""Entrances: the listeners of agents and users."""
