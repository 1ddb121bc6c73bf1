"""Alignment and fusion methods that are trained with torch on a sample of embeddings and applied with NumPy.

`training` has the training loop, `objectives` the losses and scores, `start` the closed form from which heads are
trained, `heads` and `weighers` what the methods share. Each method has a file of its own. Torch is imported only when
a method is trained.
"""
