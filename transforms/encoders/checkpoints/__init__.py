"""Checkpoints on disk, in buckets and on the hub: finding, fetching, checking and loading them."""
