"""User profiles: histories, sums of events, interests, affinities to modalities, popularity of items, explanations."""
