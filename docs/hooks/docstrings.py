"""Docstrings as the site's generator reads them: its own words for sections, tables of Markdown.

In a terminal a table of aligned columns reads best, and lines stay short; Markdown has no such tables, and its own
have a line for each row.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

BORDER = re.compile(r"=+(?: +=+)*")


class Docstrings(Extension):
    """Rewrites the docstring of every object that has one."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """A docstring with tables of Markdown, whose examples the generator knows as such."""
    lines, found = text.split("\n"), []
    while lines:
        line = lines.pop(0)
        if not BORDER.fullmatch(line.strip()) or " " not in line.strip():
            found.append("Examples:" if line == "Example:" else line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        rows: list[str] = []
        borders = 0
        last = next((k for k, other in enumerate(lines) if not other.strip()), len(lines))
        inside = [other.removeprefix(indent) for other in lines[:last]]
        del lines[:last]
        head = None
        for other in inside:
            if BORDER.fullmatch(other):
                borders += 1
                if borders == 1 and other is not inside[-1]:
                    head, rows = rows, []
            else:
                rows.append(other)
        found += [indent + row for row in table(line.strip(), head or [], rows)]
    return "\n".join(found)


def table(border: str, head: list[str], rows: list[str]) -> list[str]:
    """The lines of a Markdown table: columns are where the border has marks; a row without a first cell goes on."""
    starts = [match.start() for match in re.finditer("=+", border)]
    body: list[list[str]] = []
    for row in rows:
        cells = _cells(row, starts)
        if cells[0] or not body:
            body.append(cells)
        else:
            body[-1] = [f"{old} {new}".strip() for old, new in zip(body[-1], cells, strict=True)]
    (names,) = [_cells(row, starts) for row in head] or [[""] * len(starts)]
    lines = [names, ["---"] * len(starts), *body]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _cells(row: str, starts: list[int]) -> list[str]:
    """The cells of a row; a text that crosses the gap in front of a column belongs to the one before."""
    marks = [k for k, start in enumerate(starts) if k == 0 or row[start - 1 : start] in ("", " ")]
    cells = [""] * len(starts)
    for k, following in zip(marks, [*marks[1:], None], strict=True):
        text = row[starts[k] : None if following is None else starts[following]].strip()
        # Bars divide cells, but in code and where they are escaped.
        parts = re.split(r"(`[^`]*`)", text)
        cells[k] = "".join(part if part[:1] == "`" else re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts)
    return cells
