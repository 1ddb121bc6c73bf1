"""Writes and reads the files of runs: shards, manifests, dead letters, small vectors; and publishes runs."""
