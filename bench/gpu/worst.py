"""The slowest image cases of a bandwidth file, as arguments of ``bench/profile/run.py``: ``worst.py FILE COUNT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def worst(rows: list[dict[str, Any]], count: int) -> list[list[str]]:
    """Operator, shape, dtype, group and direction of as many cases, the slowest beside the copy first.

    Example:
        >>> row = {"id": "mean-forward-d4-2x3x8x8-float32-cuda-cold", "provider": "equikern", "percent_of_copy": 9}
        >>> worst([row], 1)
        [['mean', '2,3,8,8', 'float32', 'd4', 'forward']]
    """
    found = []
    timed = [row for row in rows if row["provider"] == "equikern" and "failure" not in row]
    for row in sorted(timed, key=lambda row: float(row["percent_of_copy"])):
        name, direction, group, shape, dtype, *_ = row["id"].split("-")
        if group in ("c4", "d4") and shape.count("x") == 3:
            found.append([name, shape.replace("x", ","), dtype, group, direction])
    return found[:count]


if __name__ == "__main__":
    for case in worst(json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])):
        print("\t".join(case))
