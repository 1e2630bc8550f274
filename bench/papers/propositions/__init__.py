"""What the papers prove, tried: equizero of an invertible and of an autoregressive model, and which maps are linear.

``python bench/papers/propositions`` runs it; README.md beside this file says what each table shows.
"""
