"""The encode stage: it fetches, prepares and encodes inputs, and reuses the embeddings of earlier runs."""
