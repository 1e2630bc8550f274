"""The names in the results; no more than the standard library is imported."""

EXPERIMENTS = ("fashion", "efficientnet")
PANELS = {  # by experiment and group
    ("fashion", "c4"): "Fashion-MNIST, C4",
    ("efficientnet", "c4"): "EfficientNet-lite0, C4",
    ("efficientnet", "d4"): "EfficientNet-lite0, D4",
}
COUNTS = {"c4": (1, 2, 3, 4), "d4": (1, 2, 4, 8)}  # k
STATISTICS = ("gradient", "moments", "corner")
TRAINED = "trained energy"  # what costs and methods are called by
