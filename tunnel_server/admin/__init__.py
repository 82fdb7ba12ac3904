"""Actions of administrators, for the admin socket and for commands that open the store themselves."""
