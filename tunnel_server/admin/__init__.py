"""What an administrator does: the acts, and the two ways to them, the admin socket and the command itself."""
