"""The tables at the end of a run, and the results file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.ops.cases import CORE, PROVIDERS, Case
from bench.ops.timing import Times

MISS = "✗"
RIVALS = {"compile": "torch.compile", "ttach": "ttach", "toolbelt": "pytorch-toolbelt"}  # to be faster than
HALF = {("weighted", "c4"), ("mean", "d4")}  # whose calls may take half of the eager expression's time at most


@dataclass
class Row:
    """One case: what each provider took, and the copies between its rounds."""

    case: Case
    times: dict[str, Times] = field(default_factory=dict)
    copies: dict[str, Times] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, int | None] = field(default_factory=dict)
    hosts: dict[str, float] = field(default_factory=dict)  # on a GPU: seconds until the host has a call queued

    @property
    def over_copy(self) -> float | None:
        """equikern's time over the time of copying the bytes."""
        mine = self.times.get("equikern")
        return mine.median / self.copies["equikern"].median if mine else None

    def over_mine(self, provider: str) -> float | None:
        """A provider's time over equikern's."""
        mine, theirs = self.times.get("equikern"), self.times.get(provider)
        return theirs.median / mine.median if mine and theirs else None

    def eager_goal(self, cache: int) -> float:
        """How many times eager torch must take."""
        return (
            self.case.goals[1]
            if (self.case.device == "cuda" or self.case.bytes > cache) and self.case.name in CORE
            else 1.0
        )

    def misses(self, cache: int) -> list[str]:
        """Which of "copy", "eager" and "compile" fall short of the goal."""
        missed = []
        limit = self.case.goals[0]
        if limit is not None and self.over_copy is not None and self.over_copy > limit:
            missed.append("copy")
        for provider, goal in (("eager", self.eager_goal(cache)), *((other, 1.0) for other in RIVALS)):
            ratio = self.over_mine(provider)
            if ratio is not None and ratio < goal:
                missed.append(provider)
        return missed

    def as_dict(self, cache: int) -> dict[str, Any]:
        case = self.case
        mine = self.times.get("equikern")
        return {
            "operator": case.name,
            "direction": case.direction,
            "group": case.group,
            "shape": case.shape,
            "dtype": case.dtype_name,
            "device": case.device,
            "state": case.state,
            "bytes": case.bytes,
            "outgrows_cache": case.bytes > cache,
            "goal_over_copy": case.goals[0],
            "goal_eager": self.eager_goal(cache),
            "gigabytes_per_second": case.bytes / mine.median / 1e9 if mine else None,
            "percent_of_copy": 100 / self.over_copy if self.over_copy else None,
            "time_over_copy": self.over_copy,
            "over_equikern": {p: self.over_mine(p) for p in self.times if p != "equikern" and mine},
            "peak_bytes": self.peaks,
            "misses": self.misses(cache),
            "seconds": {name: t.as_dict() for name, t in self.times.items()},
            "copy_seconds": {name: t.as_dict() for name, t in self.copies.items()},
            "host_seconds": self.hosts,
            "relative_error": self.errors,
        }


@dataclass
class CallRow:
    """The time of small calls of one operator."""

    name: str
    group: str
    mode: str
    mine: Times
    eager: Times

    @property
    def ratio(self) -> float:
        """equikern's time over the eager expression's."""
        return self.mine.median / self.eager.median

    @property
    def goal(self) -> float:
        return 0.5 if (self.name, self.group) in HALF else 1.0

    def as_dict(self) -> dict[str, Any]:
        return {
            "operator": self.name,
            "group": self.group,
            "mode": self.mode,
            "time_over_eager": self.ratio,
            "goal": self.goal,
            "seconds": {"equikern": self.mine.as_dict(), "eager": self.eager.as_dict()},
        }


@dataclass
class LossRow:
    """The loss from the last hidden state, with its gradients, at one size (|G|, rows, features, words)."""

    size: tuple[int, int, int, int]
    device: str
    mine: Times
    eager: Times
    logits_bytes: int  # of one full logits tensor
    peaks: dict[str, int]  # bytes above inputs and gradients

    def as_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "device": self.device,
            "time_over_eager": self.mine.median / self.eager.median,
            "peak_over_logits": {name: count / self.logits_bytes for name, count in self.peaks.items()},
            "peak_bytes": self.peaks,
            "seconds": {"equikern": self.mine.as_dict(), "eager": self.eager.as_dict()},
        }


class Ledger:
    """What a run measured."""

    def __init__(self) -> None:
        self.rows: dict[Case, Row] = {}
        self.calls: list[CallRow] = []
        self.losses: list[LossRow] = []

    def row(self, case: Case) -> Row:
        return self.rows.setdefault(case, Row(case))

    def write(self, path: Path, machine: dict[str, Any], settings: dict[str, Any]) -> None:
        """The results file: one JSON object, one line a case."""
        cache = machine["last_level_cache"]
        kernels = [json.dumps(row.as_dict(cache)) for row in self.rows.values()]
        calls = [json.dumps(row.as_dict()) for row in self.calls]
        losses = [json.dumps(row.as_dict()) for row in self.losses]
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(".part")  # moved into place, so that a run killed here leaves the one before
        whole.write_text(
            f'{{"machine": {json.dumps(machine, indent=1)},\n"settings": {json.dumps(settings)},\n'
            f'"kernels": [\n{_lines(kernels)}\n],\n"calls": [\n{_lines(calls)}\n],\n'
            f'"losses": [\n{_lines(losses)}\n]}}\n'
        )
        whole.replace(path)


def _lines(items: list[str]) -> str:
    return ",\n".join(items)


def _number(value: float | None, missed: bool = False, digits: int = 2) -> str:
    if value is None:
        return "–  "
    return f"{value:.{digits}f}{f' {MISS}' if missed else '  '}"


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.1f}"


def kernel_table(ledger: Ledger, cache: int) -> list[str]:
    """One line a case; ✗ stands behind a ratio that misses its goal."""
    present = {provider for row in ledger.rows.values() for provider in row.times}
    others = [p for p in PROVIDERS["cuda"] if p in present - {"equikern", "eager"}]  # which are all there are
    head = (
        f"{'operator':<11}{'':<9}{'group':<6}{'shape':<15}{'dtype':<9}{'cache':<6}{'ms':>9} {'20–80 %':>17}{'GB/s':>7}"
        f"{'% copy':>8}{'time/copy':>12}{'goal':>6}{'eager/time':>13}{'goal':>5}"
        f"{''.join(f'{p}/time'.rjust(15) for p in others)}{'peak MB':>10}{'eager MB':>10}"
    )
    lines = [head, "─" * len(head)]
    previous = ""
    for row in ledger.rows.values():
        case, mine = row.case, row.times.get("equikern")
        if mine is None:
            continue
        if previous and previous != case.name:
            lines.append("")
        previous = case.name
        missed, limit = row.misses(cache), case.goals[0]
        spread = f"{mine.p20 * 1e3:.3f}–{mine.p80 * 1e3:.3f}"
        ratio = row.over_copy or float("nan")
        ratios = (_number(row.over_mine(p), p in missed, 1).rjust(15) for p in others)
        lines.append(
            f"{case.name:<11}{case.direction:<9}{case.group:<6}{'×'.join(map(str, case.shape)):<15}"
            f"{case.dtype_name:<9}{case.state:<6}{mine.median * 1e3:>9.3f} "
            f"{spread:>17}{case.bytes / mine.median / 1e9:>7.1f}"
            f"{100 / ratio:>8.0f}{_number(ratio, 'copy' in missed):>12}"
            f"{_number(limit).strip() if limit else '–':>6}{_number(row.over_mine('eager'), 'eager' in missed, 1):>13}"
            f"{row.eager_goal(cache):>5.0f}{''.join(ratios)}"
            f"{_megabytes(row.peaks.get('equikern')):>10}{_megabytes(row.peaks.get('eager')):>10}"
        )
    return lines


def call_table(ledger: Ledger) -> list[str]:
    """Microseconds a call at (1, 3, 8, 8); ✗ stands behind a ratio that misses its goal."""
    head = (
        f"{'operator':<12}{'group':<7}{'autograd':<19}{'equikern µs':>12}{'20–80 %':>17}{'eager µs':>11}{'ratio':>9}"
        f"{'goal':>6}"
    )
    lines = [head, "─" * len(head)]
    for row in ledger.calls:
        mine, eager = row.mine, row.eager
        lines.append(
            f"{row.name:<12}{row.group:<7}{row.mode:<19}{mine.median * 1e6:>12.1f}"
            f"{f'{mine.p20 * 1e6:.1f}–{mine.p80 * 1e6:.1f}':>17}{eager.median * 1e6:>11.1f}"
            f"{_number(row.ratio, row.ratio > row.goal):>9}{row.goal:>6}"
        )
    return lines


def loss_table(ledger: Ledger) -> list[str]:
    """Time and peak memory of the losses from the last hidden state."""
    lines = [
        "size |G|, rows, features, words    ms    eager ms  over eager    peak over one logits tensor: ours, eager"
    ]
    for row in ledger.losses:
        found = row.as_dict()
        peaks = found["peak_over_logits"]
        lines.append(
            f"{'×'.join(map(str, row.size)):<26}{row.mine.median * 1e3:>12.1f}{row.eager.median * 1e3:>12.1f}"
            f"{found['time_over_eager']:>12.2f}{peaks['equikern']:>20.3f}{peaks['eager']:>10.3f}"
        )
    return lines


def verdict(ledger: Ledger, cache: int) -> list[str]:
    """How many goals are met, by kind."""
    lines = []
    measured = [row for row in ledger.rows.values() if row.times.get("equikern")]
    for kind, what in (
        ("copy", "within their times of the copy"),
        ("eager", f"as many times faster than eager as asked for (where the bytes outgrow {cache >> 20} MiB of cache)"),
        *((other, f"faster than {name}") for other, name in RIVALS.items()),
    ):
        judged = [row for row in measured if (kind == "copy" and row.case.goals[0] is not None) or kind in row.times]
        missed = [row for row in judged if kind in row.misses(cache)]
        if judged:
            lines.append(f"{len(judged) - len(missed)} of {len(judged)} {what}")
    if ledger.calls:
        good = sum(row.ratio <= row.goal for row in ledger.calls)
        lines.append(f"{good} of {len(ledger.calls)} small calls within their goal")
    return lines
