"""What an installed package says where something is missing: nothing of a checkout, and commands that work."""

from __future__ import annotations

import shutil
from pathlib import Path

import equikern
import pytest
from helpers import fresh

PACKAGE = Path(equikern.__file__).parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package alone, as site-packages has it."""
    folder = tmp_path_factory.mktemp("site-packages")
    shutil.copytree(PACKAGE, folder / "equikern", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def said(folder: Path, code: str, *hidden: str) -> str:
    """What a process without some packages prints."""
    start = f"import sys; sys.path.insert(0, {str(folder)!r}); sys.modules.update(dict.fromkeys({hidden!r}))\n"
    done = fresh.run("-c", f"{start}{code}")
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def command(*arguments: str) -> str:
    return f"import equikern.__main__ as m; m.main({list(arguments)!r})"


LM = "import equikern\ntry:\n    equikern.lm\nexcept AttributeError as error:\n    print(error)"


def test_what_a_missing_extra_is_said_to_need(installed: Path, tmp_path: Path) -> None:
    model, picture = tmp_path / "model.py", tmp_path / "x.png"
    model.write_text("import torch\nmade = torch.nn.Conv2d(3, 3, 3, padding=1)\n")
    picture.touch()
    audit = f"sys.path.insert(0, {str(tmp_path)!r})\n" + command("audit", "model:made", "--inp", "d4", "--input")[:-2]
    calls = {
        "demo": (command("demo", "--output", str(tmp_path / "d.png")), "rich", 'pip install "equikern[demo]"'),
        "picture": (
            f"{audit}, '1x3x8x8', '--picture', {str(tmp_path / 'p.png')!r}])",
            "matplotlib.backends.backend_agg",
            'pip install "equikern[audit]"',
        ),
        "image": (f"{audit}, {str(picture)!r}])", "PIL", "pip install pillow"),
        "lm": (LM, "transformers", 'pip install "equikern[lm]"'),
        "bench": (command("bench", "--quick"), "rich", "git clone https://github.com/equikern/equikern && cd equikern"),
    }
    for name, (code, hidden, expected) in calls.items():
        text = said(installed, code, hidden)
        assert expected in text, f"{name}: {text}"
        assert name == "bench" or "constraints.txt" not in text, f"{name}: {text}"
        assert str(PACKAGE.parent) not in text, f"{name}: {text}"


def test_a_module_that_does_not_load(installed: Path) -> None:
    """As that of a wheel where its OpenMP library is missing."""
    (native,) = installed.glob("equikern/_C.*.so") or [None]
    if native is None:
        pytest.skip("no native module")
    whole = native.read_bytes()
    try:
        native.write_bytes(b"no library")
        text = said(installed, command("info"))
    finally:
        native.write_bytes(whole)
    assert "the C++ module does not load (" in text
    assert "install a C++ compiler" not in text


def test_only_one_place_knows_of_a_checkout() -> None:
    knowing = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if "constraints.txt" in path.read_text(encoding="utf-8")
    }
    assert knowing == {"__main__.py", "repository.py"}  # the first says how the benchmarks' repository is had
