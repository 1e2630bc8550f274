"""Processes that have imported torch and nothing else, forked from one that waits: torch's own import takes seconds.

What must hold when Python starts (``LD_LIBRARY_PATH``, another Triton, the interpreter's flags) needs a real start.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

SERVER = """
import json, os, runpy, sys, traceback
import torch

def child(task):
    for number, path in ((1, task["stdout"]), (2, task["stderr"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["folder"])
    kind, what, sys.argv = task["kind"], task["what"], [task["kind"], *task["arguments"]]
    status = 0
    try:
        if kind == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = what
            runpy.run_path(what, run_name="__main__")
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        if status and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

for line in sys.stdin:
    task = json.loads(line)
    if isinstance(task, int):
        answer = os.waitstatus_to_exitcode(os.waitpid(task, 0)[1])
    else:
        answer = os.fork()
        if answer == 0:
            child(task)
    print(answer, flush=True)
"""


@functools.cache
def _server() -> tuple[IO[str], IO[str]]:
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    atexit.register(process.communicate)  # it ends with its input
    return process.stdin, process.stdout


def _ask(task: object) -> int:
    to, answers = _server()
    print(json.dumps(task), file=to, flush=True)
    return int(answers.readline())


def runs(
    commands: Sequence[Sequence[str]], environment: dict[str, str] | None = None, folder: Path | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """What Python's command lines (``-c code …``, ``-m module …``, ``file …``) end and print with, all at once.

    Args:
        commands: without the interpreter.
        environment: all of it; ours if None.
        folder: where they run; here if None.
    """
    with TemporaryDirectory() as kept:
        started = []
        for k, command in enumerate(commands):
            kind, *rest = command
            what, *arguments = rest if kind in ("-c", "-m") else command
            files = {name: str(Path(kept) / f"{name}{k}") for name in ("stdout", "stderr")}
            task = {"kind": kind, "what": what, "arguments": arguments, "folder": str(folder or Path.cwd()), **files}
            started.append((_ask({**task, "environment": environment or dict(os.environ)}), command, files))
        return [
            subprocess.CompletedProcess(command, _ask(pid), *(Path(path).read_text() for path in files.values()))
            for pid, command, files in started
        ]


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """One of them, with these variables added to ours."""
    return runs([command], {**os.environ, **variables})[0]
