"""Spaces and fusions that are trained in torch on a sample of embeddings, and applied in NumPy.

`parts` holds what a trained space is made of, `training` the loop, `objectives` what each method minimises,
`fit` and `fusion` bring them together. Torch is imported when something is trained, and only then.
"""
