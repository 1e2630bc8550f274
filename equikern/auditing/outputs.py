"""One output of all elements: its errors, what fits it, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..actions import GridAction, PermutationAction
from ..coordinates import Coordinates
from ..ops import orbit_score
from ..views import EXACT, FLOATS
from .fits import UNITS, Candidate, actions_for, mistakes_for, residual, shown_as
from .frames import Frame, relative
from .records import ElementError, Finding, Fit, OutputAudit

__all__ = ["judged"]

_SHOWN = 4  # fits of an output that are kept


def judged(
    name: str, views: Sequence[Tensor], spec: Any, frame: Frame, tolerance: float
) -> tuple[OutputAudit, list[Finding]]:
    """An output's audit, from what it is for every element in the group's order, and its findings.

    Args:
        name: what it is called.
        views: (B, …) for each element.
        spec: the action or coordinates that are declared of it, or None.
        frame: the group and the input.
        tolerance: up to which error it holds.
    """
    fits = _ordered(views, actions_for(views[0], frame, views), tolerance)
    if spec is None:
        candidate, own = fits[0]
        shown = candidate.name
    else:
        shown, move = shown_as(spec, frame)
        candidate = Candidate(shown, move, spec)
        _check(name, candidate, views[0])
        own = residual(candidate, views)
    errors = [ElementError(frame.group.names[g], *_error(candidate, g, view, views[0])) for g, view in enumerate(views)]
    kept = [Fit(c.name, error, c.code, c.action) for c, error in fits[:_SHOWN]]
    top1, tied, views_tied, apart = _answers(candidate, views, frame)
    output = OutputAudit(
        name,
        tuple(views[0].shape),
        str(views[0].dtype).removeprefix("torch."),
        shown,
        spec is not None,
        tolerance,
        errors,
        kept,
        top1,
        tied,
        views_tied,
    )
    findings = [*_said(name, output, spec, own, fits[0], views, frame), *_ties(output, apart)]
    return output, findings


def _check(name: str, candidate: Candidate, t: Tensor) -> None:
    try:
        candidate.move(0, t)
    except (ValueError, TypeError) as error:
        raise ValueError(f"out: {candidate.name} does not fit the output {name!r} {tuple(t.shape)}: {error}") from error


def _error(candidate: Candidate, g: int, view: Tensor, first: Tensor) -> tuple[float, float]:
    return relative(view, candidate.move(g, first)) if g else (0.0, 0.0)


def _ordered(
    views: Sequence[Tensor], candidates: Sequence[Candidate], tolerance: float
) -> list[tuple[Candidate, float]]:
    """Best first; of those that fit alike the simplest, which comes first."""
    found = [(candidate, residual(candidate, views)) for candidate in candidates]
    least = max(1.01 * min(error for _, error in found), 1e-2 * tolerance)
    best = next((pair for pair in found if pair[1] <= least), found[0])
    return [best, *sorted((pair for pair in found if pair is not best), key=lambda pair: pair[1])]


def _said(
    name: str,
    output: OutputAudit,
    spec: Any,
    own: float,
    best: tuple[Candidate, float],
    views: Sequence[Tensor],
    frame: Frame,
) -> Iterator[Finding]:
    """What is wrong with an output that does not move as it should."""
    tolerance = output.tolerance
    if own <= tolerance or not all(bool(view.isfinite().all()) for view in views):
        return
    shown = f"output {name!r}"
    candidate, least = best
    if spec is not None and least <= max(tolerance, own / 4):
        how = f" (out={candidate.code})" if candidate.code else ""
        yield Finding(
            "output",
            name,
            f"{shown} fits {candidate.name}{how}, residual {least:.0e}, better than {_declared(spec)} as declared, "
            f"{own:.0e}",
        )
    if least <= tolerance:
        return
    found = [(mistake, residual(mistake, views)) for mistake in mistakes_for(views, frame)]
    mistake, error = min(found, key=lambda pair: pair[1], default=(None, torch.inf))
    if mistake is not None and error <= max(tolerance, least / 4):
        yield Finding("output", name, f"{shown} looks like {mistake.name}, residual {error:.0e}")
    elif text := _border(views, frame, tolerance):
        yield Finding("border", name, f"{shown} {text}")
    elif spec is None:
        yield Finding("output", name, f"{shown} fits no action; {candidate.name} comes nearest, residual {least:.0e}")
    else:
        yield Finding("output", name, f"{shown} does not move as {_declared(spec)}: residual {own:.0e}")


def _declared(spec: Any) -> str:
    if isinstance(spec, Coordinates):
        return f"{'keypoints' if spec.format is None else f'boxes {spec.format}'} {UNITS[spec.units]}"
    return str(spec.name)


def _border(views: Sequence[Tensor], frame: Frame, tolerance: float) -> str:
    """Whether a map would be right but for its border, or moved by one place."""
    grid, t = frame.grid, views[0]
    if grid is None or grid.dims != 2 or t.dim() < 3 or min(t.shape[-2:]) < 6 or t.dtype not in EXACT:
        return ""
    margin = min(t.shape[-2:]) // 4
    shifts = sorted(((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)), key=lambda s: (abs(s[0]) + abs(s[1]), s))
    moved: list[str] = []
    for g in range(1, frame.order):
        wanted = grid.act(g, t)
        if wanted.shape != views[g].shape:
            return ""
        inner = _inside(wanted, margin)
        if bool((inner == inner[..., :1, :1]).all()):
            return ""
        for shift in shifts:
            rolled = _inside(torch.roll(wanted, shift, (-2, -1)), margin)
            if relative(_inside(views[g], margin), rolled)[0] <= tolerance:
                if shift != (0, 0):
                    moved.append(f"{frame.group.names[g]} by {shift}")
                break
        else:
            return ""
    if moved:
        return (
            f"is right but moved by one place along (H, W): after {', '.join(moved[:3])}: padding that is not the same "
            "on both sides, an even kernel, or a stride that does not fit"
        )
    widths = range(1, margin + 1)
    width = next(
        k
        for k in widths
        if all(
            relative(_inside(views[g], k), _inside(grid.act(g, t), k))[0] <= tolerance for g in range(1, frame.order)
        )
    )
    return f"is right but for a border of {width}: padding or a crop that is not the same on all sides"


def _inside(t: Tensor, margin: int) -> Tensor:
    return t[..., margin:-margin, margin:-margin]


def _answers(
    candidate: Candidate, views: Sequence[Tensor], frame: Frame
) -> tuple[float | None, int | None, int | None, int]:
    """Top-1 agreement; how many samples have two equal largest entries, best views that tie, and that differ."""
    t, action = views[0], candidate.action
    rows = t.dim() == 2 and (
        (isinstance(action, PermutationAction) and action.dim == -1 and action.signs is None)
        or (isinstance(action, GridAction) and not action.dims)
    )
    maps = isinstance(action, GridAction) and action.dims > 0 and t.dim() == action.dims + 2
    if not (rows or maps) or t.dtype not in FLOATS or t.shape[1] < 2 or not t.numel() or frame.order < 2:
        return None, None, None, 0
    wanted = [candidate.move(g, t).argmax(1) for g in range(1, frame.order)]
    agree = [(view.argmax(1) == right).double().mean().item() for view, right in zip(views[1:], wanted, strict=True)]
    top1 = sum(agree) / len(agree)
    if not rows:
        return top1, None, None, 0
    largest = t.topk(2, dim=1).values
    tied = int((largest[:, 0] == largest[:, 1]).sum())
    losses = orbit_score(torch.stack(list(views)), "max_prob")
    best = losses == losses.amin(0)
    several = best.sum(0) > 1
    answers = torch.stack([_back(action, frame, g, view).argmax(1) for g, view in enumerate(views)])
    first = answers.gather(0, best.int().argmax(0, keepdim=True))
    apart = several & (best & (answers != first)).any(0)
    return top1, tied, int(several.sum()), int(apart.sum())


def _back(action: Any, frame: Frame, g: int, view: Tensor) -> Tensor:
    moved: Tensor = action.act(int(frame.group.inverse[g]), view)
    return moved


def _ties(output: OutputAudit, apart: int) -> Iterator[Finding]:
    samples = output.shape[0] if output.shape else 0
    if output.tied:
        yield Finding(
            "ties",
            output.name,
            f"output {output.name!r}: {output.tied} of {samples} samples have two equal largest entries, of which "
            "argmax takes the first, whatever the frame",
        )
    if apart:
        yield Finding(
            "ties",
            output.name,
            f"output {output.name!r}: of {apart} of {samples} samples several views are best by max_prob, and have "
            "different answers",
        )
