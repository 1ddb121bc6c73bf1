"""User profiles: histories, states, interests, modalities, popularity, and explanations of scores."""
