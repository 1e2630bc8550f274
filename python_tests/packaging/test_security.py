"""What SECURITY.md promises: no network, no pickle, no code from inputs, no processes."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import equikern
from helpers import fresh

PACKAGE = Path(equikern.__file__).parent
NETWORK = {"socket", "ssl", "urllib", "http", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "huggingface_hub"}
PICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
PROCESSES = {"subprocess", "multiprocessing", "pty"}
# What runs a string, or unpickles what is received; compile alone is re's or torch's.
CALLS = {"eval", "exec", "__import__", "system", "popen", "Popen", "all_gather_object", "broadcast_object_list"}
ALLOWED = {("distributed/ranks.py", "all_gather_object")}


def _name(call: ast.Call) -> str:
    """Of a function, or with ``.`` of a method: a model's eval() is none of builtins."""
    if isinstance(call.func, ast.Name):
        return call.func.id
    return call.func.attr if isinstance(call.func, ast.Attribute) and call.func.attr not in ("eval", "exec") else ""


def test_the_source_has_nothing_that_is_promised_not_to_be_there() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        where = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            bad = {name for name in names if name.partition(".")[0] in NETWORK | PICKLES | PROCESSES}
            if isinstance(node, ast.Call):
                bad |= {_name(node)} & CALLS
                if ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                    safe = {ast.unparse(keyword) for keyword in node.keywords} & {"weights_only=True"}
                    bad |= set() if safe else {ast.unparse(node)}
            found |= {(where, name) for name in bad}
    assert found == ALLOWED


RUN = """
import json, sys, tempfile, pathlib, torch
seen = []
watched = ("socket.", "urllib.", "http.", "ftplib.", "pickle.", "marshal.load", "subprocess.", "os.system", "os.exec",
           "os.posix_spawn", "os.fork")
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(watched) and not from_import() else None)

def from_import():  # Python's own reading of .pyc files
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

import equikern
from equikern import EquiTune, EquiZero, audit, grid, orbit, orbit_mean
x = torch.randn(2, 3, 8, 8, requires_grad=True)
orbit_mean(orbit(x, grid("d4")), grid("d4")).sum().backward()
model = torch.nn.Conv2d(3, 3, 3, padding=1)
wrapped = EquiTune(model, "d4", "d4")
wrapped(x)
str(audit(model, x.detach(), "d4", "d4"))
with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "x.pt"
    before = seen[:]
    torch.save(x.detach(), file)
    seen[:] = before
    from equikern.auditing import command
    command._input(str(file))
equikern.build_info()
print(json.dumps(seen))
"""


def test_a_process_connects_to_nothing_and_starts_nothing() -> None:
    done = fresh.run("-c", RUN)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_a_pickle_is_refused_as_input(tmp_path: Path) -> None:
    """A file that would run a function when it is unpickled."""
    file = tmp_path / "input.pt"
    made = f"""
import os, torch
class Bad:
    def __reduce__(self):
        return os.mkdir, ({str(tmp_path / "made")!r},)
torch.save(Bad(), {str(file)!r})
"""
    assert fresh.run("-c", made).returncode == 0
    code = f"from equikern.auditing import command; command._input({str(file)!r})"
    done = fresh.run("-c", code)
    assert done.returncode != 0
    assert "weights_only" in done.stderr
    assert not (tmp_path / "made").exists()
