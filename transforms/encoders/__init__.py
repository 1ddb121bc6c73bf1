"""Encoders: a raw modality in, an embedding out. One file per family; `registry` finds them by name."""
