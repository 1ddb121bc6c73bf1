"""Held-out splits, baselines and ranking metrics."""
