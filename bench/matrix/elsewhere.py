"""Other processes, which load what was saved here: one that imports equikern first, and one that never does."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import equikern

__all__ = ["check"]

_LOADS = """
import sys
imports, *paths = sys.argv[1:]
sys.path[:0] = paths
import torch
if imports == "equikern":
    import equikern

def differs(how, folder):
    path = folder + "/program.pt2"
    program = torch._inductor.aoti_load_package(path) if how == "aoti" else torch.export.load(path).module()
    for inputs, expected in torch.load(folder + "/calls.pt"):
        with torch.no_grad():
            found = torch.utils._pytree.tree_leaves(program(*inputs))
        found = [leaf for leaf in found if isinstance(leaf, torch.Tensor)]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert ("equikern" in sys.modules) == (imports == "equikern")

for line in sys.stdin:
    try:
        differs(*line.split())
        print("same", flush=True)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace(chr(10), " "), flush=True)
"""


def check(imports: str, how: str, folder: str) -> None:
    """That ``program.pt2`` in a folder gives what ``calls.pt`` says: a list of (inputs, results).

    Args:
        imports: "equikern", or "nothing" where that may not be imported.
        how: "export", or "aoti" for what AOTInductor made.
        folder: where both are.

    Raises:
        RuntimeError: it does not; with what the process says.
    """
    process = _process(imports)
    assert process.stdin is not None
    assert process.stdout is not None
    print(how, folder, file=process.stdin, flush=True)
    said = process.stdout.readline().strip()
    if said != "same":
        raise RuntimeError(said or f"the process that imported {imports} ended")


@functools.cache
def _process(imports: str) -> subprocess.Popen[str]:
    """One that lives as long as this one."""
    paths = [str(Path(equikern.__file__).parents[1])] if imports == "equikern" else []
    command = [sys.executable, "-I", "-W", "ignore", "-c", _LOADS, imports, *paths]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # warnings; what goes wrong is said in the answer
        text=True,
        cwd=tempfile.gettempdir(),
    )
