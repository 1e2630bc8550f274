"""Docstrings as the site's generator reads them: its own words for sections, tables of Markdown.

In a terminal a table of aligned columns reads best, and lines stay short; Markdown has no such tables, and its own
have a line for each row.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

BORDER = re.compile(r"=+(?: +=+)+")
NAMES = re.compile(r"    \w+(, \w+)+(?=: )")


class Docstrings(Extension):
    """Rewrites the docstring of every object that has one."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)


def rewritten(text: str) -> str:
    """A docstring with tables of Markdown, whose sections and formulas the generator reads as they are meant."""
    lines, found = text.split("\n"), []
    while lines:
        line = lines.pop(0)
        before = found[-1] if found else ""
        if BORDER.fullmatch(line.strip()):
            indent = line[: len(line) - len(line.lstrip())]
            last = next((k for k, other in enumerate(lines) if not other.strip()), len(lines))
            found += [
                indent + row for row in table([line.strip(), *(row.removeprefix(indent) for row in lines[:last])])
            ]
            del lines[:last]
        elif line == "Example:":
            found.append("Examples:")
        elif before == "Returns:":
            found.append(re.sub(r"^ +", r"\g<0>: ", line))  # what stands before a colon would be taken for a type
        elif NAMES.match(line):  # a space would divide a name from its type
            found.append(NAMES.sub(lambda match: match[0].replace(", ", ",\u00a0"), line))
        elif not before and line.startswith("    ``"):
            found.append(line.replace("``", ""))  # a formula on a line of its own is a block of code
        else:
            found.append(line)
    return "\n".join(found)


def table(lines: list[str]) -> list[str]:
    """A table with borders in Markdown: columns are where the first border has marks; a head stands between two."""
    starts = [match.start() for match in re.finditer("=+", lines[0])]
    borders = [k for k, line in enumerate(lines) if BORDER.fullmatch(line)]
    (head,) = lines[1 : borders[1]] if len(borders) > 2 else [""]
    body: list[list[str]] = []
    for row in lines[borders[-2] + 1 : borders[-1]]:
        cells = _cells(row, starts)
        if cells[0] or not body:
            body.append(cells)
        else:  # what does not fit into a line goes on in the next
            body[-1] = [f"{old} {new}".strip() for old, new in zip(body[-1], cells, strict=True)]
    return [f"| {' | '.join(cells)} |" for cells in (_cells(head, starts), ["---"] * len(starts), *body)]


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
