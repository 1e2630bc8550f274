"""The names in the results; no more than the standard library is imported."""

CASES = {  # the backbone, and the images it is tuned on
    "CNN, fashion": ("cnn", "fashion"),
    "CNN, digits": ("cnn", "digits"),
    "EfficientNet, fashion": ("efficientnet", "fashion"),
}
GROUPS = ("c4", "d4")
WRAPPERS = ("equitune", "equizero", "λ-equitune")
SYSTEMS = ("plain", *WRAPPERS)
