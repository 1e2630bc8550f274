"""SCAN: sentences of commands translated into actions, made equivariant to swaps of words.

``python bench/papers/scan`` from the repository's root; README.md has the settings and the results.
"""
