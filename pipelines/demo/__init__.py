"""The synthetic shop, and the demo that runs the whole job on it."""
