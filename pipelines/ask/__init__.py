"""Questions to a published run: search, explain, evaluate."""
