"""Recommendation lists: the items of highest score for each user, and the settings that change the scores."""
