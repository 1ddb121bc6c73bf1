"""Measures of recommendation lists: held-out splits, baselines and metrics."""
