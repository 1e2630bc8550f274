"""Fine-tuning against equi-tuning: a pretrained EfficientNet and a CNN, plain and made invariant in three ways.

``python bench/papers/tuning`` from the repository's root; README.md has the settings and the results.
"""
