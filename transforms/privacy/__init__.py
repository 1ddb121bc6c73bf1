"""What is done for the people in a log: pseudonyms, forgetting, noise, and what the manifest says of it."""
