"""The pieces of a space. They are applied in NumPy; none needs torch."""
