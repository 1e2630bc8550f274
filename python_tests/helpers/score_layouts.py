"""Print, as JSON, in which order the kernels that score rows add: the layouts of their sums over threads, per case.

``score`` and ``score_select`` must find the same scores to the bit; a sum's bits follow which thread holds what.
"""

from __future__ import annotations

import json
import re

from equikern.backends.triton.compat import compile_kernel
from helpers.triton_audit import DTYPES
from helpers.vocabulary_audit import build

CASES = ["entropy few2 bf16 50257", "margin all3 fp32 1000", "max_prob few2 fp64 1000", "max few3 fp16 50257"]


def sums(case: str) -> list[str]:
    """The types of what is reduced, with their layouts spelt out."""
    kind, group, dtype, size = case.split(" ")
    plan = build(kind, group, DTYPES[dtype], int(size))
    binary = compile_kernel(plan.kernel, "sm_90", plan.pointers, plan.aligned, plan.constants, plan.num_warps)
    code = binary.asm["ttgir"]
    layouts = dict(re.findall(r"^(#\w+) = (#ttg.*)$", code, re.MULTILINE))
    found = re.findall(r"^ *\}\) : \((tensor<.*?>)\) ->", code, re.MULTILINE)
    return [re.sub(r"#\w+(?=[>,}])", lambda m: layouts[m[0]], line) for line in found]


def main() -> None:
    print(json.dumps({case: [sums(f"score-{case}"), sums(f"scored-{case}")] for case in CASES}))


if __name__ == "__main__":
    main()
