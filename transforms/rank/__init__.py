"""Recommendations: exact top k, and what is added to a score."""
