"""Fitting a space: moments, methods, fusion, refits, quality."""
