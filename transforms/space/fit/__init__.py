"""Fits a space: moments, alignment methods, fusion methods, refits, quality."""
