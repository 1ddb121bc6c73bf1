"""Behaviour as a modality: item embeddings computed from which items the same users liked."""
