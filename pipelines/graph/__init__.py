"""The Beam graph of a run, part by part."""
