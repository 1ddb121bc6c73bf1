"""The parts that a space is made of. They are applied with NumPy alone; none needs torch."""
