"""Generates a synthetic shop and runs the whole job on it."""
