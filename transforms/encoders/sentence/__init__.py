"""The families `transformers` (text) and `st` (whatever sentence-transformers loads)."""
