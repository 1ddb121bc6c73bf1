"""Encoders, one folder for each family. `registry` finds a family by the name of a model."""
