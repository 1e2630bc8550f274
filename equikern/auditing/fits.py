"""Which action of the group fits an output: what the output of g·x would be if it moved so, for every way to move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..actions import (
    FieldAction,
    GridAction,
    MatrixAction,
    PermutationAction,
    TokenAction,
    matrix,
    patches,
    permutation,
    regular,
    trivial,
)
from ..actions import field as field_of
from ..actions import grid as grid_of
from ..coordinates import Coordinates, boxes, keypoints
from ..views import EXACT, of
from .frames import Frame, relative

__all__ = ["Candidate", "actions_for", "mistakes_for", "residual", "shown_as"]

Move = Callable[[int, Tensor], Tensor]
_MOST_PREFIX = 5  # tokens in front of the patches: a class token and registers
_MOST_PAIRS = 128  # keypoints in a flat output


@dataclass(frozen=True)
class Candidate:
    """One way in which the group may move an output.

    Attributes:
        name: what reports call it.
        move: from g and f(x) to what f(g·x) then is.
        action: what to give as ``out``, or None where nothing says it, so that it is a mistake or a layer's own.
        code: how that is written.
    """

    name: str
    move: Move
    action: Any = None
    code: str = ""


def residual(candidate: Candidate, views: Sequence[Tensor]) -> float:
    """``‖f(gx) − g f(x)‖ / ‖f(x)‖``, the root mean square over g ≠ e, of outputs in the group's order."""
    errors = []
    for g in range(1, len(views)):
        try:
            errors.append(relative(views[g], candidate.move(g, views[0]))[0])
        except (ValueError, TypeError, RuntimeError):  # shapes that it does not act on
            return torch.inf
    return math.sqrt(sum(error * error for error in errors) / len(errors)) if errors else 0.0


def shown_as(action: Any, frame: Frame) -> tuple[str, Move]:
    """A declared action's name, and how it moves an output."""
    if isinstance(action, Coordinates):
        return repr(action), lambda g, t: action.act(g, t, _size(frame))
    return action.name, lambda g, t: action.act(g, t)


def actions_for(t: Tensor, frame: Frame, views: Sequence[Tensor] = ()) -> list[Candidate]:
    """What may be given as ``out`` for an output f(x) = t (B, …), the simplest first.

    With the outputs of all elements also coordinates, vectors in many channels, and what is found by matching: channels
    and points that change places.
    """
    still = trivial(frame.group)
    found = [Candidate("trivial (invariant)", lambda _, t: t, still, '"trivial"')]
    grid = frame.grid
    if grid is not None:
        found += _on_grid(t, grid, frame.sides)
        found += _tokens(t, grid, frame.sides)
        if views or (t.dim() > grid.dims + 1 and t.shape[-grid.dims - 1] == grid.dims):
            found += _vectors(t, grid)
        if grid.dims == 2 and views and t.dtype in EXACT:
            found += _coordinates(t, grid, frame, views)
    found += _own(t, frame)
    for dim in (-1, -2):
        if t.dim() > -dim and t.shape[dim] == frame.order > 1:
            action = regular(frame.group, dim)
            found.append(Candidate(f"regular on dim {dim}", action.act, action, f"regular(group, {dim})"))
    if views and t.dtype in EXACT:
        found += _matched(views, frame)
    return found


def _on_grid(t: Tensor, grid: GridAction, sides: Sequence[int]) -> Iterator[Candidate]:
    n = grid.dims
    if t.dim() > n:
        yield Candidate(f"grid {grid.name}", grid.act, grid, _written(grid))
    inner = t.shape[1:-1]
    # Of the image's proportions, but for what strides leave out.
    if t.dim() == n + 2 and all(
        abs(k * sides[0] - inner[0] * m) <= max(sides) for k, m in zip(inner, sides, strict=True)
    ):

        def last(g: int, t: Tensor) -> Tensor:
            return grid.act(g, t.movedim(-1, 1)).movedim(1, -1)

        yield Candidate(f"grid {grid.name}, channels last", last, None, "")
    if t.dim() > n + 1 and grid.order > 1 and t.shape[-n - 1] % grid.order == 0:
        action = field_of(grid, "regular")
        yield Candidate("regular field", action.act, action, f'field({_grid(grid)}, "regular")')


def _tokens(t: Tensor, grid: GridAction, sides: Sequence[int]) -> Iterator[Candidate]:
    """Tokens (B, N, C) of a grid of patches with the image's proportions."""
    if t.dim() != 3 or not all(sides):
        return
    unit = math.gcd(*sides)
    for prefix in range(_MOST_PREFIX + 1):
        count = t.shape[1] - prefix
        scale = round((count / math.prod(side / unit for side in sides)) ** (1 / len(sides))) if count > 1 else 0
        size = [scale * side // unit for side in sides]
        if scale and math.prod(size) == count:
            alike = len(set(size)) == 1
            shown = str(size[0]) if alike else str(tuple(size))
            code = f"patches({_written(grid)}, {shown}, {prefix})"

            def move(g: int, t: Tensor, prefix: int = prefix, size: Sequence[int] = size) -> Tensor:
                front, places = t[:, :prefix], t[:, prefix:].unflatten(1, size)  # type: ignore[no-untyped-call]
                moved = grid.act(g, places.movedim(-1, 1)).movedim(1, -1).flatten(1, -2)
                return torch.cat((front, moved), 1)

            fits = grid.views.keeps(size)
            behind = f" behind {prefix}" if prefix else ""
            name = f"tokens of {'×'.join(map(str, size))} patches{behind}"
            yield Candidate(name, move, patches(grid, size, prefix) if fits else None, code)


def _vectors(t: Tensor, grid: GridAction) -> Iterator[Candidate]:
    """Vectors in front of a grid, and alone on the last dim, in every convention of axes and signs."""
    n = grid.dims
    inner = t.dim() > n + 1 and t.shape[-n - 1] % n == 0
    alone = t.dim() > 1 and t.shape[-1] == n
    if not inner and not alone:
        return
    for name, mats in conventions(grid):
        plain = name == CONVENTIONS[0][0]
        linear = matrix(mats, group=grid.group)
        if inner:
            action = field_of(grid, "vector" if plain else linear)
            code = f'field({_grid(grid)}, "vector")' if plain else f"field({_grid(grid)}, matrix({_listed(mats)}))"
            yield Candidate(f"vector field {name}", action.act, action, code)
        if alone:
            shown = f"vectors {name}" + (", or points from −1 to 1" if n == 2 else "")
            yield Candidate(shown, _multiplied(mats), linear, f"matrix({_listed(mats)})")


_I, _UP, _SWAP = torch.eye(2).double(), torch.diag(torch.tensor([1.0, -1.0])).double(), torch.eye(2).double().flip(0)
CONVENTIONS = (
    ("(dx, dy), y downwards", _I),
    ("(dx, dy), y upwards", _UP),
    ("(dy, dx), y downwards", _SWAP),
    ("(dy, dx), y upwards", _UP @ _SWAP),
)


def conventions(grid: GridAction) -> list[tuple[str, Tensor]]:
    """What the elements do to a vector, in every convention that this group tells from those before."""
    mats = field_of(grid, "vector").mats
    if grid.dims == 3:
        return [(CONVENTIONS[0][0], mats), ("(dz, dy, dx)", mats.flip(1, 2))]
    found: list[tuple[str, Tensor]] = []
    for name, change in CONVENTIONS:
        changed = change @ mats @ change.T
        if not any(torch.equal(changed, other) for _, other in found):
            found.append((name, changed))
    unsigned = mats.abs()
    if not torch.equal(unsigned, torch.eye(2).expand_as(mats)):
        found.append(("without signs", unsigned))
    return found


def _multiplied(mats: Tensor) -> Move:
    return lambda g, t: t @ mats[g].T.to(t)


def _coordinates(t: Tensor, grid: GridAction, frame: Frame, views: Sequence[Tensor]) -> Iterator[Candidate]:
    """Keypoints and boxes in every unit, points that change places by matching."""
    size = _size(frame)
    flat = t.dim() == 2 and t.shape[1] % 2 == 0 and 2 < t.shape[1] <= 2 * _MOST_PAIRS
    paired = t.dim() > 1 and t.shape[-1] == 2
    for unit in UNITS if paired or flat else ():
        points = keypoints(grid, units=unit)  # type: ignore[arg-type]
        code, name = f'keypoints({_written(grid)}, units="{unit}")', f"keypoints {UNITS[unit]}"
        if paired:
            yield Candidate(name, _placed(points, size), points, code)
            yield Candidate(f"{name}, (y, x)", _by_rows(points, size))
            yield from _swapped(views, grid, unit, size)
        else:
            yield Candidate(f"flat {name}", _flattened(points, size))
    if t.dim() < 2 or t.shape[-1] != 4:
        return
    for form in ("xyxy", "xywh", "cxcywh"):
        for unit in UNITS:
            made = boxes(grid, form, unit)  # type: ignore[arg-type]
            code = f'boxes({_written(grid)}, "{form}", "{unit}")'
            yield Candidate(f"boxes {form} {UNITS[unit]}", _placed(made, size), made, code)


def _placed(what: Coordinates, size: tuple[int, int]) -> Move:
    return lambda g, t: what.act(g, t, size)


def _by_rows(points: Coordinates, size: tuple[int, int]) -> Move:
    return lambda g, t: points.act(g, t.flip(-1), size).flip(-1)


def _flattened(points: Coordinates, size: tuple[int, int]) -> Move:
    def move(g: int, t: Tensor) -> Tensor:
        pairs: Tensor = t.unflatten(-1, (-1, 2))  # type: ignore[no-untyped-call]
        return points.act(g, pairs, size).flatten(1)

    return move


UNITS = {"edge": "by W − x", "center": "by W − 1 − x", "normalized": "from 0 to 1, by 1 − x"}


def _swapped(views: Sequence[Tensor], grid: GridAction, unit: Any, size: tuple[int, int]) -> Iterator[Candidate]:
    """Keypoints (B, N, 2) of which some change places in the mirror."""
    if not views or views[0].dim() != 3 or not 1 < views[0].shape[1] <= 512:
        return
    plain = keypoints(grid, units=unit)
    mirrors = [g for g, m in enumerate(field_of(grid, "vector").mats) if torch.linalg.det(m) < 0]
    if not mirrors or views[mirrors[0]].shape != views[0].shape:
        return
    moved = plain.act(mirrors[0], views[0], size)
    rows = _nearest(views[mirrors[0]].movedim(1, 0).flatten(1), moved.movedim(1, 0).flatten(1))
    if rows is None or rows == list(range(len(rows))) or any(rows[rows[n]] != n for n in rows):
        return
    points = keypoints(grid, swap=rows, units=unit)
    code = f'keypoints({_written(grid)}, swap={rows}, units="{unit}")'
    yield Candidate(
        f"keypoints {UNITS[unit]}, swapped in the mirror", lambda g, t: points.act(g, t, size), points, code
    )


def _own(t: Tensor, frame: Frame) -> Iterator[Candidate]:
    """The action on the input, where the output has the dims for it."""
    action = frame.action
    if isinstance(action, FieldAction) and t.dim() > action.dims and t.shape[-action.dims] % action.size == 0:
        yield Candidate(action.name, action.act, action, "the input's")
    if isinstance(action, TokenAction) and t.dim() > 1 and t.shape[-1] == action.size:
        yield Candidate("logits of the tokens", action.logits.act, action.logits, "the input's .logits")
    if isinstance(action, MatrixAction) and t.dim() > 1 and t.shape[-1] == action.size:
        yield Candidate(action.name, action.act, action, "the input's")
    if isinstance(action, PermutationAction):
        for dim in range(-1, -t.dim(), -1):
            if t.shape[dim] == action.size:
                along = action.along(dim)
                yield Candidate(f"{action.name} on dim {dim}", along.act, along, f"the input's .along({dim})")


def _matched(views: Sequence[Tensor], frame: Frame) -> Iterator[Candidate]:
    """Channels that change places, with signs or without: what each channel of a view is most like."""
    t, grid = views[0], frame.grid
    forms: list[tuple[GridAction | None, int]] = [(None, -1)] if t.dim() == 2 else []
    if grid is not None and t.dim() == grid.dims + 2:
        forms.append((grid, 1))
    for turned, dim in forms:
        n = t.shape[dim]
        if not 1 < n <= 512 or t.numel() // n < 4:
            continue
        rows, signs = [], []
        for g, view in enumerate(views):
            moved = t if turned is None else turned.act(g, t)
            if moved.shape != view.shape:
                break
            source, sign = _likest(view.movedim(dim, 0).flatten(1), moved.movedim(dim, 0).flatten(1))
            rows.append(source.argsort().tolist())
            signs.append(sign[source.argsort()].tolist())
        try:
            signed = None if all(s > 0 for row in signs for s in row) else signs
            channels = permutation(rows, signed, group=frame.group)
        except ValueError:  # which is no action
            continue
        if signed is None and all(row == rows[0] for row in rows):
            continue
        what = "signs" if all(row == rows[0] for row in rows) else "channels change places"
        code = f"permutation({rows if n <= 16 else '[…]'}{'' if signed is None else ', signs=…'})"
        if turned is None:
            yield Candidate(f"{what}", channels.act, channels, code)
        else:
            action = field_of(turned, channels)
            yield Candidate(f"grid {turned.name}, {what}", action.act, action, f"field({_grid(turned)}, {code})")


def _likest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of a the row of b that it is, or the negative of, and the sign."""
    a, b = a.double(), b.double()
    products = a @ b.T
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * products.abs()
    # Where several rows are alike, the one in its own place.
    squares = squares - squares.abs().max() * 1e-9 * torch.eye(len(a), dtype=a.dtype, device=a.device)
    source = squares.argmin(1)
    sign = torch.where(products.gather(1, source.unsqueeze(1)).squeeze(1) < 0, -1, 1)
    return source.cpu(), sign.cpu()


def _nearest(a: Tensor, b: Tensor) -> list[int] | None:
    found: list[int] = torch.cdist(a.double(), b.double()).argmin(1).tolist()
    return found if sorted(found) == list(range(len(found))) else None


# -- what models do by mistake


def mistakes_for(views: Sequence[Tensor], frame: Frame) -> Iterator[Candidate]:
    """Ways to move an output that are no action of its group, or not the one that anybody means."""
    t, grid = views[0], frame.grid
    if grid is None or grid.dims != 2 or t.dtype not in EXACT:
        return
    if t.dim() > 2:
        yield from _other_words(views, grid)
    mats = field_of(grid, "vector").mats
    back = mats[grid.group.inverse]
    if not torch.equal(back, mats):
        if t.dim() > 3 and t.shape[-3] % 2 == 0:
            yield Candidate("vectors turned by g⁻¹ on a grid", _mixed(grid, back))
        if t.dim() > 1 and t.shape[-1] == 2:
            yield Candidate("vectors turned by g⁻¹", _multiplied(back))
    height, width = frame.sides
    if height != width and grid.views.turns and t.dim() > 1 and t.shape[-1] == 2:
        points, size = keypoints(grid, units="edge"), (height, width)

        def unturned(g: int, t: Tensor) -> Tensor:
            sides = t.new_tensor([width, height])
            return points.act(g, t * sides, size) / sides

        yield Candidate("keypoints from 0 to 1 by the sides of the image that was not turned", unturned)


def _mixed(grid: GridAction, mats: Tensor) -> Move:
    def move(g: int, t: Tensor) -> Tensor:
        pairs = grid.act(g, t).unflatten(-3, (-1, 2))  # type: ignore[no-untyped-call]
        return torch.einsum("ij,...jhw->...ihw", mats[g].to(pairs), pairs).flatten(-4, -3)

    return move


_EVERY = grid_of("d4")
_NAMES = dict(zip(_EVERY.words, _EVERY.group.names, strict=True)) | {"Hw": "vflip", "hw": "e"}


def _other_words(views: Sequence[Tensor], grid: GridAction) -> Iterator[Candidate]:
    """For every element the rotation or flip that its view is most like."""
    t, words = views[0], []
    for g, view in enumerate(views):
        errors = [relative(view, _turned(word, t))[0] for word in _EVERY.words]
        own = _EVERY.words.index(grid.words[g])
        best = min(range(len(errors)), key=lambda k: (errors[k], k != own))
        words.append(_EVERY.words[own if errors[own] <= errors[best] * 1.01 else best])
    wrong = [(_NAMES[a], _NAMES[b]) for a, b in zip(grid.words, words, strict=True) if a != b]
    if not wrong or all(b == "e" for _, b in wrong):
        return
    yield Candidate(f"grid {grid.name}, but {_said(wrong, grid, words)}", lambda g, t: _turned(words[g], t))


def _said(wrong: list[tuple[str, str]], grid: GridAction, words: Sequence[str]) -> str:
    each = ", ".join(f"{a} comes out as {b}" for a, b in wrong[:4])
    if [grid.words[g] for g in grid.group.inverse.tolist()] == list(words):
        return f"by g⁻¹ in place of g: {each}"
    if all({a, b} == {"hflip", "vflip"} for a, b in wrong):
        return f"along the other axis: {each}"
    return each


def _turned(word: str, t: Tensor) -> Tensor:
    views = of(word)
    return views.kind.apply(t, views, None, 0)


def _size(frame: Frame) -> tuple[int, int]:
    return (frame.sides[-2], frame.sides[-1]) if len(frame.sides) == 2 else (1, 1)


def _grid(grid: GridAction) -> str:
    return f"grid({grid.name!r})".replace("'", '"')


def _written(grid: GridAction) -> str:
    return f'"{grid.name}"'


def _listed(mats: Tensor) -> str:
    return str(mats.int().tolist()) if len(mats) <= 4 else "[…]"
