"""The fairness experiment: regard of generated texts per demographic group, before and after EquiLM and its kin.

``python -m bench.papers.fairness`` in the repository's folder runs it; README.md beside this file says how to read it.
"""
