"""What the operators are made of: the registered ones, their derivatives, and the checks of what users pass."""
