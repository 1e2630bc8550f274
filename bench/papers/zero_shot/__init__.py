"""EfficientNet-lite0 on rotated and flipped images, as a classifier and as the image half of an image-text proxy.

``python bench/papers/zero_shot`` from the repository's root; README.md has the settings and the results.
"""
