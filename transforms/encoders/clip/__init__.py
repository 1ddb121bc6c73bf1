"""The family `open_clip`: CLIP and related models, for text and images."""
