"""Catalogues and interaction logs, read and grouped into shards."""
