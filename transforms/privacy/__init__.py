"""Protection of the users in a log: pseudonyms, forgetting, noise, and the statement about them in the manifest."""
