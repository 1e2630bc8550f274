"""What a run has measured so far, on disk, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Checkpoint:
    """A dictionary of JSON values that appends what is set to a file, one line each.

    Args:
        path: the file; its folder is made.
        settings: what the values depend on; the file's first line.
        option: the command's option that names the file's folder.

    Raises:
        ValueError: the file was made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], option: str = "--output") -> None:
        self.path = path
        self._values: dict[str, Any] = {}
        settings = json.loads(json.dumps(settings))  # as it is read again: lists for tuples
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        whole = lines[:-1]  # behind the last line break is nothing, or a line that was cut off while it was written
        if not whole:
            path.write_text(json.dumps(settings, ensure_ascii=False) + "\n", encoding="utf-8")
            return
        found = json.loads(whole[0])
        if found != settings:
            differ = ", ".join(sorted(k for k in {*found, *settings} if found.get(k, ...) != settings.get(k, ...)))
            raise ValueError(f"{path} was made with other settings ({differ}): choose another {option}, or delete it")
        for line in whole[1:]:
            key, value = json.loads(line)
            self._values[key] = value
        if lines[-1]:
            with path.open("r+b") as file:
                file.truncate(sum(len(line) + 1 for line in whole))

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")
        self._values[key] = value
