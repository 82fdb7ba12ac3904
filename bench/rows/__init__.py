"""One module for each figure or family of figures."""
