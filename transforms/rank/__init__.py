"""Recommendation lists: the exact top k of users and items, popularity, caution and diversity."""
