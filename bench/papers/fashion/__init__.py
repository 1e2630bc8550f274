"""Rotated Fashion-MNIST: a small CNN trained upright, then made invariant to quarter turns in four ways.

``python bench/papers/fashion`` from the repository's root; README.md has the settings and the results.
"""
