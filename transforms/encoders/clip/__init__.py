"""The family `open_clip`: text and images."""
