"""Checkpoints on disk and in buckets: found, fetched, checked."""
