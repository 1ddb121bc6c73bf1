"""Behaviour as a modality: embeddings of items from who interacted with them."""
