"""What the results are named by: networks, splits, and the systems around a network."""

from __future__ import annotations

CELLS = ("LSTM", "GRU", "RNN")
SCAN = ("add_jump", "around_right")
SPLITS = (*SCAN, "scan_ii")
SYSTEMS = ("plain", "equitune", "equizero")
PRODUCTS = ("product equitune", "product equizero")
TUNED = {**dict.fromkeys(SCAN, ("equitune", "equizero")), "scan_ii": ("equitune", "product equitune")}
