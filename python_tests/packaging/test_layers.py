"""Layers that show: no module imports another that imports it, not even inside a function or for its types alone."""

from __future__ import annotations

import ast
from pathlib import Path

import equikern

PACKAGE = Path(equikern.__file__).parent
# Upwards: a module imports from its own layer and from those before it.
LAYERS = (
    ("groups", "scalars", "views", "reductions", "version", "buildinfo", "repository"),
    ("backends",),
    ("core",),
    ("actions",),
    ("ops",),
    ("coordinates", "distributed", "portable", "warmup"),
    ("nn",),
    ("auditing", "lm", "rl"),
    ("demo",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    """By dotted name within the package, the package itself left out: it imports everything."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a module imports, wherever in it."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = package[: len(package) - node.level + 1]
        source = [*base, *(node.module.split(".") if node.module else [])]
        for alias in node.names:
            for candidate in (".".join([*source, alias.name]), ".".join(source)):
                if candidate in known:
                    found.add(candidate)
                    break
    return found - {name}


def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(name, path, known) for name, path in known.items()}


def test_no_module_imports_one_that_imports_it() -> None:
    edges = graph()
    assert edges["core.library"] >= {"backends", "views"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())
    assert done == set(edges)


def test_layers_import_downwards_alone() -> None:
    level = {top: k for k, layer in enumerate(LAYERS) for top in layer}
    for name, others in graph().items():
        top = name.split(".")[0]
        for other in others:
            below = other.split(".")[0]
            allowed = below == top or level[below] < level[top] or level[top] == 0 == level[below]
            assert allowed, f"{name} imports {other}, which is not below it"
