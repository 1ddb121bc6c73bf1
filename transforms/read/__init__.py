"""Reads catalogues and interaction logs and groups them into shards."""
