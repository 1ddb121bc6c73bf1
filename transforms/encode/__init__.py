"""The encode stage: prefetch, micro-batches, reuse of earlier runs' embeddings."""
