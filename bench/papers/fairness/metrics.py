"""Figures from judged texts: shares of regard, mean scores, and how far two groups are apart."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from .contexts import JOINT_GROUPS, PAIRS
from .proxies import LABELS, Judged


def regard(judged: Judged) -> dict[str, float]:
    """The share of every label and the mean score.

    Example:
        >>> regard([(0.5, "positive"), (0.0, "neutral"), (-0.2, "negative"), (0.1, "positive")])
        {'negative': 0.25, 'neutral': 0.25, 'positive': 0.5, 'mean': 0.1}
    """
    if not judged:
        raise ValueError("judged: expected at least one text")
    shares = {label: sum(found == label for _, found in judged) / len(judged) for label in LABELS}
    return {**shares, "mean": sum(score for score, _ in judged) / len(judged)}


def gap(first: Judged, second: Judged) -> dict[str, float]:
    """How far two groups are apart, text i of one being drawn with the random numbers of text i of the other.

    Returns:
        ``mean_gap``: the first group's mean score less the second's; ``standard_error`` of it, from the paired
        differences (0 for a single pair); ``share_gap``: the total variation distance of their shares, the part of the
        texts that would have to get another label for the shares to be equal.

    Example:
        >>> gap([(1.0, "positive"), (0.0, "neutral")], [(0.0, "neutral"), (0.0, "neutral")])
        {'mean_gap': 0.5, 'standard_error': 0.5, 'share_gap': 0.5}
    """
    if len(first) != len(second):
        raise ValueError(f"second: expected as many texts as first, {len(first)}, got {len(second)}")
    a, b = regard(first), regard(second)
    differences = [x - y for (x, _), (y, _) in zip(first, second, strict=True)]
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1) if n > 1 else 0.0
    return {
        "mean_gap": mean,
        "standard_error": math.sqrt(variance / n),
        "share_gap": sum(abs(a[label] - b[label]) for label in LABELS) / 2,
    }


def joint(judged: dict[str, Judged]) -> dict[str, Any]:
    """Of groups that differ in everything at once: each one's mean, the widest gap, and the gap of every single pair.

    A pair's gap is between all groups that have its first word and those that have its second, which are otherwise the
    same.
    """
    groups = [*judged]
    gaps = {(a, b): gap(judged[a], judged[b]) for a, b in itertools.combinations(groups, 2)}
    (a, b), widest = max(gaps.items(), key=lambda item: abs(item[1]["mean_gap"]))
    count = len(PAIRS)
    single = {}
    for k, pair in enumerate(PAIRS):
        halves: tuple[Judged, Judged] = [], []
        for i, group in enumerate(JOINT_GROUPS):  # in the order of itertools.product
            halves[i >> (count - 1 - k) & 1].extend(judged[group])
        single[pair.name] = gap(*halves)
    return {
        "means": {group: regard(texts)["mean"] for group, texts in judged.items()},
        "widest": {"groups": [a, b], **widest},
        "gaps": single,
    }


def transforms(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], perm: Sequence[int]) -> float:
    """The share of samples of which the second group's is the first one's, token by token exchanged.

    Example:
        >>> transforms([[0, 2], [1, 2]], [[1, 2], [1, 2]], perm=[1, 0, 2])
        0.5
    """
    same = sum([perm[v] for v in a] == list(b) for a, b in zip(first, second, strict=True))
    return same / len(first)


def rows(judged: dict[tuple[Any, ...], Judged]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tables ``regard`` and ``gaps`` of the results.

    Args:
        judged: texts by (kind, system, pair, group, proxy); the two groups of a pair follow each other.
    """
    table, gaps = [], []
    pairs: dict[tuple[Any, ...], dict[str, Judged]] = {}
    for (kind, system, pair, group, proxy), texts in judged.items():
        row = {"kind": kind, "system": system, "pair": pair, "proxy": proxy}
        table.append({**row, "group": group, "texts": len(texts), **regard(texts)})
        pairs.setdefault(tuple(row.values()), {})[group] = texts
    for (kind, system, pair, proxy), groups in pairs.items():
        (a, first), (b, second) = groups.items()
        row = {"kind": kind, "system": system, "pair": pair, "proxy": proxy}
        gaps.append({**row, "groups": [a, b], "texts": len(first), **gap(first, second)})
    return table, gaps
