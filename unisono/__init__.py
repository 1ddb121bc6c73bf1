"""Multimodal item vectors and user profiles for recommenders, on Apache Beam."""
