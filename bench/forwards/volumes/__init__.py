"""A trained 3D U-Net for volumes: its 8-view mean beside k views after canonicalisation.

``python bench/forwards/volumes`` from the repository's root; README.md has the settings and the results.
"""
