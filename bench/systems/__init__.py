"""What is measured: the product, and the baselines that stand beside it."""
