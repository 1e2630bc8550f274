"""The names in the results; no more than the standard library is imported."""

PLAIN, ALL = "plain", "mean of 8 views"
FIXED = "the first k views"  # of the group's list, without canonicalisation
POSES = ("e", "Dhw")  # what differs most to this network: the stack and the stack upside down
PAIR = f"the views {' and '.join(POSES)}"
STATISTICS = ("linear", "gradient", "moments", "corner")
REDUCTIONS = ("mean", "softmax")
POSED = f"poses {' and '.join(POSES)}"
VIEWS = (1, 2, 3)
TIMED = "linear"  # the statistic whose calls are timed: all of them read the volume once
CLASSES = ("background", "platelet", "boundary", "middle")


def canonical(statistic: str, reduce: str) -> str:
    """What a way of choosing and merging is called.

    Example:
        >>> canonical("linear", "mean")
        'canonical, linear, mean'
    """
    return f"canonical, {statistic}, {reduce}"
