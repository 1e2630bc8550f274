"""The fairness experiment: regard of generated texts per demographic group, before and after EquiLM and its kin.

``python bench/papers/fairness`` runs it; README.md beside this file says how to read it.
"""
