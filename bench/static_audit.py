"""Read the machine code of every kernel, for GPUs this machine need not have, and keep what was found.

    python bench/static_audit.py                      # read everything, write bench/results/static/
    python bench/static_audit.py --check              # compare with what is written there; exit status 1 if it is worse
    python bench/static_audit.py --targets sm_90      # of one GPU only
    python bench/static_audit.py --cases kernels --check    # as the tests read it with other releases of Triton

The machine code for Hopper is also executed, to count what it issues: bench/results/static/issue.md, some minutes.
Triton's kernels are compiled as the launches would compile them (``python_tests/helpers/triton_audit.py``): all cases
for all targets; the tests compile all for sm_90 alone (``--cases main``) and each kernel once for the others. CUDA's
are read out of the built ``equikern._C``, whichever it has; a build without CUDA leaves what the table says of them.
One JSON file per target holds the kernels by the compiler that made them, so that other releases of Triton and CUDA
have tables of their own; the Markdown file beside it says the same to people.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "python_tests")]

RESULTS = ROOT / "bench" / "results" / "static"
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
UPDATE = "if this is meant, write the new table with: python bench/static_audit.py"

Table = dict[str, dict[str, Any]]  # by kernel or case
Tables = dict[str, Table]  # by compiler


def by_target(records: Iterable[Mapping[str, Any]]) -> dict[str, Table]:
    """The records of ``triton_audit.audit_all`` by target and case."""
    found: dict[str, Table] = {}
    for record in records:
        kept = {name: value for name, value in record.items() if name not in ("case", "target")}
        found.setdefault(record["target"], {})[record["case"]] = kept
    return found


def triton_tables(records: Iterable[Mapping[str, Any]]) -> dict[str, Tables]:
    """The same under the name of the installed Triton."""
    import triton

    return {target: {f"triton {triton.__version__}": table} for target, table in by_target(records).items()}


def cuda_tables(blocks: Path | None = None) -> dict[str, Tables] | str:
    """Every CUDA kernel of the built ``equikern._C`` by target, or why there is none to read.

    Args:
        blocks: what ``compile_blocks`` made, which takes a minute; made here if None.
    """
    from equikern import build_info
    from helpers.machine_code import cuda_kernels, cuobjdump, extension

    info = build_info()
    spec = find_spec("equikern._C")
    if not info.native or not info.cuda or spec is None or spec.origin is None:
        return f"equikern was built without CUDA ({info.cuda_reason or info.reason}): its CUDA kernels are not audited"
    if cuobjdump() is None:
        return "cuobjdump not found, install the CUDA toolkit or Triton: the CUDA kernels are not audited"
    asked = launched_shared(blocks)
    if isinstance(asked, str):
        return asked
    release = re.search(r"release (\d+\.\d+)", info.nvcc or "")
    compiler = f"nvcc {release[1]}" if release else "nvcc"
    found: dict[str, Tables] = {}
    for target, dumps in extension(Path(spec.origin)).items():
        table = found.setdefault(target.rstrip("a"), {compiler: {}})[compiler]
        for dump in dumps:
            table.update(cuda_kernels(dump, asked))
    found = {target: tables for target, tables in found.items() if tables[compiler]}  # nvcc adds an empty binary
    for tables in found.values():
        for name, record in tables[compiler].items():
            record["asked"] = name in asked
    return found


# The shapes of the speed goals, and the two square groups.
GOALS = [(256, 3, 224, 224), (128, 64, 56, 56), (64, 256, 64, 64), (32, 3, 512, 512)]
GOALS += [(512, 1280, 7, 7), (256, 256, 14, 14), (64, 64, 37, 37)]
VOCABULARY = {2: 40_000, 4: 20_000, 8: 9_700}  # entries of a row that every GPU here stages, by their size
GROUPS = ("hw Wh HW wH", "hw Wh HW wH hW wh Hw WH")


def launched_shared(blocks: Path | None = None) -> dict[str, int] | str:
    """Per CUDA kernel that a goal's call launches, the most shared memory that one asks for; or why it is unknown.

    The calls are planned by the code that plans them on a GPU, compiled for this machine.
    """
    import torch
    from equikern.backends.choice import TABLE
    from equikern.views import accumulator, of
    from helpers.cuda_blocks import Blocks, call, compile_blocks

    asked: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        library = blocks or compile_blocks(Path(folder))
        if library is None:
            return "no C++ compiler to plan the CUDA kernels' launches with: they are not audited"
        planner = Blocks(library, plan_only=True)
        dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
        for operator, shape, maps, dtype in product(dict.fromkeys(key[0] for key in TABLE), GOALS, GROUPS, dtypes):
            image = torch.empty(shape, dtype=dtype, device="meta")
            views = image.expand(maps.count(" ") + 1, *shape)
            if operator != "symmetrize":
                views = torch.empty_like(views, memory_format=torch.contiguous_format)
            if call(planner, operator, maps, image, views) > 0:
                for kernel, shared in planner.launches().items():
                    asked[kernel] = max(shared, asked.get(kernel, 0))
        for dtype, space in product(dtypes, ("probs", "log_probs")):
            y = torch.empty(2, 64, VOCABULARY[dtype.itemsize], dtype=dtype, device="meta")
            lse = torch.empty(2, 64, dtype=accumulator(y), device="meta")
            assert planner.softmax_mean(y, y[0], lse, of(". ."), None, space) > 0
            asked.update(planner.launches())
            assert planner.softmax_mean_backward(y[0], y, lse, y, of(". ."), None, space) > 0
            asked.update(planner.launches())
    return asked


def worse(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What got worse between two records of a kernel: spills, barriers, narrow accesses, atomics, occupancy."""
    if "error" in new:
        return [f"does not compile: {new['error']}"]
    found = [
        f"{name} {old.get(name, 0)} → {new[name]}"
        for name in ("spills", "parked", "stack", "local", "barriers", "atomics")
        if new.get(name, 0) > old.get(name, 0)
    ]
    for name in ("loads", "stores"):
        for width in (8, 16, 32, 64, 96, 128):
            before, after = (
                sum(count for bits, count in record[name].items() if int(bits) < width) for record in (old, new)
            )
            if after > before:
                found.append(f"{name} narrower than {width} bits {before} → {after}")
    if old["occupancy"] is not None and (new["occupancy"] or 0) < old["occupancy"]:
        found.append(f"occupancy {old['occupancy']:.0%} → {new['occupancy'] or 0:.0%}")
    return found


def regressions(old: Table, new: Table, whole: bool = True) -> list[str]:
    """Every way in which kernels are worse than the table says, or not in it, or, if the new one is whole, gone."""
    found = [f"{name}: {what}" for name in old if name in new for what in worse(old[name], new[name])]
    found += [f"{name}: not in the table" for name in new if name not in old]
    return found + [f"{name}: in the table, but no such kernel" for name in old if whole and name not in new]


def read(target: str) -> Tables:
    """What is written of a target."""
    path = RESULTS / f"{target}.json"
    tables: Tables = json.loads(path.read_text()) if path.exists() else {}
    return tables


def check(fresh: Mapping[str, Tables], whole: bool = True) -> tuple[list[str], list[str]]:
    """Regressions against the written tables, and which compilers have none to be compared with.

    Args:
        whole: the fresh tables have every kernel that there is.
    """
    found, unknown = [], []
    for target, tables in fresh.items():
        written = read(target)
        for compiler, table in tables.items():
            if compiler in written:
                found += [f"{target}, {compiler}: {line}" for line in regressions(written[compiler], table, whole)]
            else:
                unknown.append(f"{target}: no table for {compiler}, only for {', '.join(sorted(written)) or 'none'}")
                found += [f"{target}, {compiler}: {n}: {r['error']}" for n, r in table.items() if "error" in r]
    return found, unknown


def write(target: str, tables: Tables) -> None:
    """Put fresh tables in the place of those by the same compiler, and say the same in Markdown."""
    from helpers.triton_audit import table as markdown

    RESULTS.mkdir(parents=True, exist_ok=True)
    merged = {**read(target), **tables}
    merged = {compiler: dict(sorted(merged[compiler].items())) for compiler in sorted(merged)}
    (RESULTS / f"{target}.json").write_text(json.dumps(merged, indent=1) + "\n")
    lines = [
        f"# Machine code for {target}",
        "",
        "Written by `python bench/static_audit.py`. Loads and stores: instructions × bits a thread. Occupancy: the",
        "share of a multiprocessor's warps that registers, shared memory and threads let run at once. CUDA kernels ask",
        "for shared memory at the launch: counted is the most that a call of the speed goals' shapes asks for (C4 and",
        "D4, all float types). No such call launches a kernel that is marked `≤`: its occupancy is an upper bound.",
        "Tables by other releases of Triton than the one that the tests run with need not have every case.",
    ]
    for compiler, table in merged.items():
        columns = ("warps", *COLUMNS) if compiler.startswith("triton") else ("threads", *COLUMNS)
        lines += ["", f"## {compiler}", "", markdown(table, columns)]
    (RESULTS / f"{target}.md").write_text("\n".join(lines) + "\n")


def issue(few: bool = False, blocks: Path | None = None) -> dict[str, Table]:
    """Warp instructions a byte, by compiler and case; see ``helpers/budget.py``."""
    from helpers.budget import budgets
    from helpers.cuda_blocks import compile_blocks

    with tempfile.TemporaryDirectory() as folder:
        return budgets(blocks or compile_blocks(Path(folder)), few)


def read_issue() -> dict[str, Table]:
    """What is written of them."""
    path = RESULTS / "issue.json"
    tables: dict[str, Table] = json.loads(path.read_text()) if path.exists() else {}
    return tables


def issues_more(fresh: Mapping[str, Table], written: Mapping[str, Table]) -> list[str]:
    """The cases that issue, or ask the L1 cache for, a twentieth more than is written, or of which nothing is."""
    found = []
    for compiler, table in fresh.items():
        for case, record in table.items():
            before = written.get(compiler, {}).get(case)
            if compiler in written and before is None:
                found.append(f"{compiler}: {case}: not in the table")
            elif before is not None:
                for ratio in ("issue/memory", "L1/memory"):
                    if record[ratio] > 1.05 * before[ratio] + 0.005:
                        found.append(f"{compiler}: {case}: {ratio} {before[ratio]} → {record[ratio]}")
    return found


def write_issue(fresh: Mapping[str, Table]) -> None:
    """Put fresh tables in the place of those by the same compiler, and say the same in Markdown."""
    from helpers.budget import COPY, ISSUE, L1, markdown

    merged = {**read_issue(), **fresh}
    merged = {compiler: merged[compiler] for compiler in sorted(merged)}
    (RESULTS / "issue.json").write_text(json.dumps(merged, indent=1) + "\n")
    lines = [
        "# Instructions against memory on sm_90",
        "",
        "Written by `python bench/static_audit.py`, which executes the machine code and counts: a prediction, not a",
        "measurement. The time that an H200 needs to issue a kernel's warp instructions",
        f"({ISSUE / 1e9:.0f} G/s) over the time that it needs to move the bytes that the operator must move",
        f"({COPY / 1e12:.1f} TB/s). Above 1 a kernel is bound by its instructions; the goal is below 0.7. In brackets",
        f"the time that the L1 cache with shared memory needs to serve it ({L1 / 1e9:.0f} G lines of 128 bytes or",
        "words of all banks a second), if that is longer. The calls at the end, on batches that fill a GPU, are those",
        "that the choice between CUDA C++ and Triton is made of. For means of softmaxes and their gradients it also",
        "counts what Triton reads from memory a second time, as far as the rows in flight are more than the L2 cache",
        "holds.",
        "",
        *markdown(merged),
    ]
    (RESULTS / "issue.md").write_text("\n".join(lines) + "\n")


COLUMNS = ("registers", "spills", "shared", "occupancy", "loads", "stores", "barriers", "shuffles")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=TARGETS, help="%(default)s")
    parser.add_argument("--check", action="store_true", help="compare with the written tables, write nothing")
    parser.add_argument("--cases", choices=("all", "main", "kernels"), default="all", help="of Triton's (%(default)s)")
    options = parser.parse_args()
    from helpers.compiling import MAIN
    from helpers.triton_audit import audit_all

    fresh = triton_tables(audit_all(options.targets, options.cases))
    cuda = cuda_tables()
    if isinstance(cuda, str):
        print(cuda, file=sys.stderr)
    else:
        for target, tables in cuda.items():
            if target in options.targets:
                fresh.setdefault(target, {}).update(tables)
    if not options.check:
        failed = [
            f"{t}: {n}: {r['error']}"
            for t, ts in fresh.items()
            for k in ts.values()
            for n, r in k.items()
            if "error" in r
        ]
        if failed:
            sys.exit("\n".join(["nothing written, these do not compile:", *failed]))
        lost = sum(
            len(read(target).get(name, {})) > len(table)
            for target, tables in fresh.items()
            for name, table in tables.items()
        )
        if options.cases != "all" and lost:
            sys.exit(f"nothing written: {lost} tables have more cases than --cases {options.cases}; leave it out")
        for target, tables in fresh.items():
            write(target, tables)
            print(RESULTS / f"{target}.md")
        if MAIN in options.targets and options.cases == "all":  # a part of the cases would take the place of all
            write_issue(issue())
            print(RESULTS / "issue.md")
        return
    found, unknown = check(fresh, options.cases == "all")
    if MAIN in options.targets:
        found += issues_more(issue(options.cases != "all"), read_issue())
    print("\n".join([*unknown, *found]) or "no kernel is worse than its table")
    if found:
        sys.exit(UPDATE)


if __name__ == "__main__":
    main()
