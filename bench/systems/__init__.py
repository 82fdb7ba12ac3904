"""Systems under test: the product and its baselines."""
