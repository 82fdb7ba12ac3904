"""Figures of the tunnel as ratios against baselines in one harness: `python -m bench`."""
