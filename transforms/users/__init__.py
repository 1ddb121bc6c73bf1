"""User profiles: histories, sums, interests, popularity, and explanations."""
