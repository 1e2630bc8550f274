"""What an audit found: tables, JSON and a picture."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .records import Finding, OutputAudit, SubmoduleAudit

__all__ = ["Audit"]

_MOST_ROWS = 40  # of submodules in a table
Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


@dataclass(frozen=True)
class Audit:
    """The result of ``equikern.audit``; ``print`` shows it.

    Attributes:
        group: its name.
        elements: the names of its elements.
        samples: B.
        forwards: how many forwards it took.
        outputs, submodules, findings: what was found.

    Example:
        >>> from equikern import audit
        >>> found = audit(torch.nn.Conv2d(1, 1, 3), torch.rand(2, 1, 6, 6), "hflip")
        >>> found.holds, found.findings[-1].text.partition(";")[2]
        (False, ' its kernels are not symmetric (by ...), as those of ordinary convolutions')
    """

    group: str
    elements: list[str]
    samples: int
    forwards: int
    outputs: list[OutputAudit]
    submodules: list[SubmoduleAudit]
    findings: list[Finding]

    @property
    def holds(self) -> bool:
        """Whether every output moves with the input within its tolerance, the same at every call."""
        return all(o.holds for o in self.outputs) and all(
            f.kind not in ("deterministic", "finite") for f in self.findings
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it in lists, dicts, numbers and strings, for JSON; numbers that are not finite are None."""
        found: dict[str, Any] = _plain({"holds": self.holds, **_fields(self)})
        return found

    def to_json(self) -> str:
        """``to_dict`` as text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def tables(self) -> list[Table]:
        """What ``print`` shows: title, columns and rows of each table."""
        rows = [
            [
                output.name,
                "×".join(map(str, output.shape)),
                output.action + (" (declared)" if output.declared else ""),
                _number(output.residual),
                _number(max((error.largest for error in output.errors), default=0.0)),
                "yes" if output.holds else "no",
                "" if output.top1 is None else f"{output.top1:.3f}",
                _runner_up(output),
            ]
            for output in self.outputs
        ]
        title = f"Symmetry under {self.group}, {self.samples} samples, {self.forwards} forwards"
        columns = ["output", "shape", "action", "RMS error", "largest", "holds", "top-1", "next best"]
        found: list[Table] = [(title, columns, rows)]
        each = [
            [name, *(_number(o.errors[g].rms) for o in self.outputs)]
            for g, name in enumerate(self.elements)
            if g and all(len(o.errors) > g for o in self.outputs)
        ]
        found.append(("RMS error of each element", ["element", *(o.name for o in self.outputs)], each))
        if self.submodules:
            title = "Submodules, in the order in which they end"
            found.append((title, ["name", "kind", "shape", "fits", "before", "behind"], self._shown()))
        if self.findings:
            found.append(("Findings", ["kind", "where", "what"], [[f.kind, f.where, f.text] for f in self.findings]))
        return found

    def _shown(self) -> list[list[str]]:
        """The rows of the submodules: of many, those around the first that breaks."""
        rows = list(map(_row, self.submodules))
        if len(rows) <= _MOST_ROWS:
            return rows
        broken = next((f.where for f in self.findings if f.kind == "submodule"), self.submodules[0].name)
        at = next(k for k, m in enumerate(self.submodules) if m.name == broken)
        start = min(max(at - _MOST_ROWS // 2, 0), len(rows) - _MOST_ROWS)
        rest = f"… {len(rows) - _MOST_ROWS} others are in .submodules"
        return [*rows[start : start + _MOST_ROWS], [rest, *[""] * 5]]

    def __str__(self) -> str:
        parts = []
        for title, columns, rows in self.tables():
            if not rows:
                continue
            if title == "Findings":
                parts.append("\n".join(["Findings", *(f"- {what}" for *_, what in rows)]))
                continue
            widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
            lines = [
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                for row in [columns, *rows]
            ]
            parts.append("\n".join([title, *lines]))
        return "\n\n".join(parts)

    def plot(self, path: str | Path) -> None:
        """Save a picture: the error of each element, and of each submodule before and behind it.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        from .picture import save

        title = f"Error of each element of {self.group}: {'holds' if self.holds else 'does not hold'}"
        save(Path(path), title, self.elements, self.outputs, self.submodules)


def _row(m: SubmoduleAudit) -> list[str]:
    shape = "×".join(map(str, m.shape))
    return [m.name or "(the model)", m.kind, shape, m.fit, _number(m.residual_before), _number(m.residual)]


def _fields(audit: Audit) -> dict[str, Any]:
    return {
        **{name: getattr(audit, name) for name in ("group", "elements", "samples", "forwards")},
        "outputs": [
            {
                **{k: v for k, v in vars(output).items() if k != "fits"},
                "errors": [asdict(error) for error in output.errors],
                "fits": [{"name": fit.name, "residual": fit.residual, "code": fit.code} for fit in output.fits],
                "residual": output.residual,
                "holds": output.holds,
            }
            for output in audit.outputs
        ],
        "submodules": [asdict(m) for m in audit.submodules],
        "findings": [asdict(f) for f in audit.findings],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "∞"


def _runner_up(output: OutputAudit) -> str:
    other = next((fit for fit in output.fits if fit.name != output.action), None)
    return "" if other is None else f"{other.name} {_number(other.residual)}"
