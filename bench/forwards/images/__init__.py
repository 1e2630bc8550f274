"""Accuracy per forward on turned images: a CNN on Fashion-MNIST, and EfficientNet-lite0 on photographs.

``python bench/forwards/images`` from the repository's root; README.md has the settings and the results.
"""
