"""Bad input to groups, actions and backends: errors name the argument, what was expected and what came."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from equikern import (
    Action,
    EquiTune,
    GridAction,
    Group,
    active_backend,
    cyclic_group,
    dihedral_group,
    grid,
    orbit,
    product_group,
    trivial,
    use_backend,
)
from equikern.backends import BACKENDS
from equikern.views.maps import Maps
from helpers import fresh
from helpers.bad_input import assert_error
from helpers.looped import each

C2, C4 = cyclic_group(2), cyclic_group(4)
any_grid: Any = grid
any_group: Any = Group

Case = tuple[Callable[[], object], type[Exception], str, str, str]

CASES: dict[str, Case] = {
    "table of floats": (lambda: any_group([[0.0, 1.0], [1.0, 0.0]]), TypeError, "multiply", "integers", "float32"),
    "table of bools": (lambda: any_group([[False, True], [True, False]]), TypeError, "multiply", "integers", "bool"),
    "table of complex": (lambda: any_group(torch.zeros(2, 2) * 1j), TypeError, "multiply", "integers", "complex64"),
    "no table": (lambda: any_group(None), TypeError, "multiply", "square table of integers", "NoneType"),
    "name for a table": (lambda: any_group("C4"), TypeError, "multiply", "square table of integers", "str"),
    "ragged table": (lambda: Group([[0, 1], [1]]), ValueError, "multiply", "square table", "length 2 at dim 1"),
    "beyond 64 bits": (lambda: Group([[2**70]]), ValueError, "multiply", "square table of integers", "verflow"),
    "rectangle": (lambda: Group([[0, 1]]), ValueError, "multiply", r"\(\|G\|, \|G\|\)", r"\(1, 2\)"),
    "vector": (lambda: any_group([0, 1]), ValueError, "multiply", "square table", r"\(2,\)"),
    "empty table": (lambda: any_group(torch.zeros(0, 0, dtype=torch.int64)), ValueError, "multiply", "square", "0, 0"),
    "huge table": (
        lambda: any_group(torch.zeros(1, 1, dtype=torch.int64).expand(2000, 2000)),
        *(ValueError, "multiply", "at most 1024 elements", "2000"),
    ),
    "too few names": (lambda: Group([[0, 1], [1, 0]], ["e"]), ValueError, "names", "2 strings", "1"),
    "one string of names": (lambda: Group([[0, 1], [1, 0]], "ef"), TypeError, "names", "2 strings", "'ef'"),
    "numbers as names": (lambda: any_group([[0, 1], [1, 0]], [0, 1]), TypeError, "names", "2 strings", r"\[0, 1\]"),
    "a number for names": (lambda: any_group([[0, 1], [1, 0]], 2), TypeError, "names", "2 strings", "2"),
    "cyclic of 0": (lambda: cyclic_group(0), ValueError, "n", "from 1 to 1024", "0"),
    "cyclic of −1": (lambda: cyclic_group(-1), ValueError, "n", "from 1 to 1024", "-1"),
    "cyclic of 10³⁰": (lambda: cyclic_group(10**30), ValueError, "n", "from 1 to 1024", "1000"),
    "cyclic of 2.0": (lambda: cyclic_group(2.0), TypeError, "n", "a whole number", "float"),  # type: ignore[arg-type]
    "cyclic of True": (lambda: cyclic_group(True), TypeError, "n", "a whole number", "bool"),
    "cyclic of a string": (lambda: cyclic_group("4"), TypeError, "n", "a whole number", "str"),  # type: ignore[arg-type]
    "dihedral of 0": (lambda: dihedral_group(0), ValueError, "n", "from 1 to 512", "0"),
    "dihedral of 513": (lambda: dihedral_group(513), ValueError, "n", "from 1 to 512", "513"),
    "dihedral of None": (lambda: dihedral_group(None), TypeError, "n", "a whole number", "NoneType"),  # type: ignore[arg-type]
    "product of nothing": (lambda: product_group(), ValueError, "groups", "at least one group", "none"),
    "product with a number": (lambda: product_group(C2, 3), TypeError, r"groups\[1\]", "a Group", "int"),  # type: ignore[arg-type]
    "product of a list": (lambda: product_group([C2, C2]), TypeError, r"groups\[0\]", "a Group", "list"),  # type: ignore[arg-type]
    "huge product": (
        lambda: product_group(*[cyclic_group(32)] * 3),
        *(ValueError, "groups", "at most 1024 elements", "32768"),
    ),
    "unknown grid": (lambda: grid("c8"), ValueError, "name", "trivial, c2, c4, d4", "'c8'"),
    "grid in capitals": (lambda: grid("D4"), ValueError, "name", "d4", "'D4'"),
    "grid by number": (lambda: any_grid(4), TypeError, "name", "trivial, c2", "int"),
    "grid of a group": (lambda: any_grid(C4), TypeError, "name", "trivial, c2", "Group"),
    "three dims": (lambda: grid("c4", dims=3), ValueError, "dims", "2", "3"),
    "negative dims": (lambda: grid("c4", dims=-2), ValueError, "dims", "2", "-2"),
    "dims as a string": (lambda: any_grid("c4", "2"), TypeError, "dims", "2", "str"),
    "trivial of a name": (lambda: trivial("c4"), TypeError, "group", "a Group", "str; pass the group"),  # type: ignore[arg-type]
    "trivial of an action": (lambda: trivial(grid("c4")), TypeError, "group", "a Group", "GridAction"),  # type: ignore[arg-type]
    "action of a number": (lambda: GridAction(2, ["hw", "hW"]), TypeError, "group", "a Group", "int"),  # type: ignore[arg-type]
    "words as a string": (lambda: GridAction(C2, "hw hW"), TypeError, "words", "a list of strings", "'hw hW'"),
    "words as None": (lambda: GridAction(C2, None), TypeError, "words", "a list of strings", "None"),  # type: ignore[arg-type]
    "words as numbers": (lambda: GridAction(C2, [0, 1]), TypeError, "words", "a list of strings", r"\[0, 1\]"),  # type: ignore[list-item]
    "too few words": (lambda: GridAction(C4, ["hw", "hW"]), ValueError, "words", "4, one per element of C4", "2"),
    "no words": (lambda: GridAction(C2, []), ValueError, "words", "2, one per element", "0"),
    "another letter": (lambda: GridAction(C2, ["hw", "hx"]), ValueError, r"words\[1\]", "h and w once each", "'hx'"),
    "a letter twice": (lambda: GridAction(C2, ["hw", "hh"]), ValueError, r"words\[1\]", "h and w once each", "'hh'"),
    "three letters": (lambda: GridAction(C2, ["hw", "dhw"]), ValueError, r"words\[1\]", "once each", "'dhw'"),
    "an empty word": (lambda: GridAction(C2, ["", ""]), ValueError, r"words\[0\]", "h and w once each", "''"),
    "a dot among words": (lambda: GridAction(C2, ["hw", "."]), ValueError, r"words\[1\]", "'.' throughout", "'.'"),
    "a word among dots": (lambda: GridAction(C2, [".", "hw"]), ValueError, r"words\[1\]", "'.' throughout", "'hw'"),
    "element 4 of c4": (lambda: grid("c4").act(4, torch.ones(2, 2)), ValueError, "g", "0 … 3 of 'c4'", "4"),
    "element −1": (lambda: grid("c4").act(-1, torch.ones(2, 2)), ValueError, "g", "0 … 3", "-1"),
    "acting on a list": (lambda: grid("c4").act(1, [1]), TypeError, "x", "a torch.Tensor", "list"),  # type: ignore[arg-type]
    "acting on a row": (lambda: grid("c4").act(1, torch.ones(3)), ValueError, "x", "at least 2 dims", r"\(3,\)"),
    "views of another letter": (lambda: Action("x", Maps("zz")), ValueError, r"words\[0\]", "h and w", "'zz'"),
    "views without their table": (
        lambda: orbit(torch.ones(3), Action("x", Maps("permutation -1 3: . x"))),
        *(ValueError, "table", "a contiguous one of torch.int32", "none"),
    ),
    "element by name": (
        lambda: grid("c4").act("r1", torch.ones(2, 2)),  # type: ignore[arg-type]
        *(TypeError, "g", "a whole number", "str"),
    ),
    "unknown backend": (lambda: use_backend("gpu"), ValueError, "name", "reference, cpu, triton, cuda", "'gpu'"),
    "backend by module": (lambda: use_backend(torch), TypeError, "name", "reference, cpu", "module"),  # type: ignore[arg-type]
    "unknown device": (lambda: active_backend("gpu"), ValueError, "device", "'cpu' or 'cuda'", "'gpu'"),
    "device by index": (lambda: active_backend(0), TypeError, "device", "a torch.device or its name", "int"),  # type: ignore[arg-type]
    "no backbone": (lambda: EquiTune(None, "c4", "c4"), TypeError, "backbone", "a callable", "NoneType"),  # type: ignore[arg-type]
    "model of an unknown grid": (lambda: EquiTune(torch.relu, "c8", "c8"), ValueError, "inp", "c4", "'c8'"),
    "unknown grid of an output": (
        lambda: EquiTune(torch.relu, "c4", ("c4", "c8")),
        *(ValueError, r"out\[1\]", "c4", "'c8'"),
    ),
    "classes under a rotation": (
        lambda: EquiTune(lambda x: x.mean((-2, -1)), "c4", "c4")(torch.rand(2, 3, 4, 4)),
        *(ValueError, "out", "outputs", r"\(2, 3\)"),
    ),
    "an oblong output": (
        lambda: EquiTune(lambda x: x[..., :2], "c4", "c4")(torch.rand(2, 3, 4, 4)),
        *(ValueError, "backbone", "square outputs", "4×2"),
    ),
    "whole numbers to average": (
        lambda: EquiTune(lambda x: x.long(), "c4", "c4")(torch.rand(2, 3, 4, 4)),
        *(TypeError, "backbone", "floating-point", "int64"),
    ),
    "model of a number": (lambda: EquiTune(torch.relu, 4, "c4"), TypeError, "inp", "an action or a name", "int"),  # type: ignore[arg-type]
    "model of two groups": (lambda: EquiTune(torch.relu, "d4", "c4"), ValueError, "out", "input's group", "'c4'"),
    "unknown merge": (lambda: EquiTune(torch.relu, "c4", "c4", "average"), ValueError, "reduce", "'mean'", "'average'"),
    "no views at a time": (
        lambda: EquiTune(torch.relu, "c4", "c4", views_per_forward=0),
        *(ValueError, "views_per_forward", "1 or more", "0"),
    ),
}


@each("name", CASES)
def test_error(name: str) -> None:
    assert_error(*CASES[name])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU backend can run here")
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_a_backend_that_cannot_run_says_why(name: str) -> None:
    before = active_backend()
    with pytest.raises(ValueError, match=rf"^name: backend '{name}' cannot run here: \S+"):
        use_backend(name)
    assert active_backend() == before


def environment(backend: str | None) -> subprocess.CompletedProcess[str]:
    """A fresh process that imports equikern with EQUIKERN_BACKEND set, and runs an operator."""
    code = "import equikern, torch; print(equikern.orbit(torch.ones(2, 2), equikern.grid('c4')).sum().item(), end='')"
    variables = {k: v for k, v in os.environ.items() if k != "EQUIKERN_BACKEND"}
    if backend is not None:
        variables["EQUIKERN_BACKEND"] = backend
    return fresh.runs([("-c", code)], variables)[0]


@pytest.mark.parametrize("backend", [None, "", "reference"])
def test_environment(backend: str | None) -> None:
    result = environment(backend)
    assert (result.returncode, result.stdout) == (0, "16.0"), result.stderr


def test_environment_with_an_unknown_backend() -> None:
    result = environment("gpu")
    assert result.returncode == 1
    expected = f"ValueError: EQUIKERN_BACKEND: expected one of {', '.join(BACKENDS)}, got 'gpu'"
    assert result.stderr.rstrip().endswith(expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton can run here")
def test_environment_with_a_backend_that_cannot_run_here() -> None:
    result = environment("triton")
    assert result.returncode == 1
    assert "ValueError: " in result.stderr
    assert "'triton' (from EQUIKERN_BACKEND) cannot run" in result.stderr
