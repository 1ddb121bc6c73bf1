"""Text checkpoints of transformers, and the family `st` of sentence-transformers."""
