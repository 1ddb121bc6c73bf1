"""What can be done to a table: Beam-free functions and their PTransforms, one concept a file."""
