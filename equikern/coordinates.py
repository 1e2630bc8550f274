"""What rotations and flips of an image do to coordinates on it: keypoints, boxes, and heat maps with a channel each.

Coordinates are (x, y): x runs along the width W to the right, y along the height H downwards. A quarter turn makes an
H×W image a W×H one, and coordinates on it count from the turned image's corner. Three units, one for a whole model:

============ ========================================== ================================= ===================
units        the middle of the pixel in row i, col. j   horizontal flip                   as in
============ ========================================== ================================= ===================
"edge"       (j + ½, i + ½), the image is [0, W]×[0, H] x → W − x                         boxes of COCO
"center"     (j, i), the image is [−½, W − ½]×…         x → W − 1 − x                     keypoints of COCO
"normalized" ((j + ½) / W, (i + ½) / H)                 x → 1 − x                         DETR, YOLO
============ ========================================== ================================= ===================

With c(g) the middle of the image g·x, every element acts on what is measured from the middle by a signed permutation,
``g·p = ρ(g)(p − c(e)) + c(g)``: that is what the wrappers' kernels are given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor

from .actions import FieldAction, GridAction, PermutationAction, field, grid, permutation
from .actions.base import element
from .core import checks
from .core.act import act, elements_on, listed
from .scalars import index, kind_of
from .views.grid import axes_of, sides_of

__all__ = ["Coordinates", "boxes", "heat_maps", "keypoints"]

Units = Literal["edge", "center", "normalized"]
Format = Literal["xyxy", "xywh", "cxcywh"]
_HALF = {"edge": (0.5, 0.0), "center": (0.5, -0.5), "normalized": (0.0, 0.5)}  # the middle: side · first + second
_KINDS = {"xyxy": "<<>>", "xywh": "<<||>>", "cxcywh": "==||"}  # what ``_moved`` says of each entry


class Coordinates:
    """How a group of rotations and flips moves coordinates on an image; made by ``keypoints`` and ``boxes``.

    To be given as ``out`` to ``EquiTune`` and the other wrappers, which know the image's size, or applied by ``act``
    and ``undo``. It is no ``Action`` for the operators, since what it does depends on that size.

    Attributes:
        action: what the group does to the image.
        units: "edge", "center" or "normalized".
        shape: the last dims of the coordinates: (2,) or (N, 2), with more entries behind x and y; (4,) for boxes.
        format: "xyxy", "xywh" or "cxcywh" for boxes, None for keypoints.
        linear: ρ, the action on the flattened last dims of what is measured from the middle; of boxes ``"xywh"`` on six
            numbers, the right and the bottom behind the four.

    Example:
        >>> points = keypoints("c4")
        >>> points.act(1, torch.tensor([3.0, 1.0]), (4, 6)).tolist()  # now on an image of 6 rows and 4 columns
        [1.0, 3.0]
    """

    def __init__(
        self,
        action: GridAction,
        units: Units,
        sides: Sequence[int],
        kinds: Sequence[str],
        swap: Sequence[int] | None = None,
        format: str | None = None,
    ) -> None:
        self.action, self.group, self.units, self.format = action, action.group, units, format
        self.swap = None if swap is None else list(swap)
        self._inner = (len(sides),) if swap is None else (len(swap), len(sides))  # what ``linear`` moves
        self._entries = 4 if format == "xywh" else len(sides)  # those of the last dim that the user knows
        self.shape = (*self._inner[:-1], self._entries)
        # The side that each entry is measured along where it is measured from the corner, else −1.
        self._sides = [side if kind in "<>=" else -1 for side, kind in zip(sides, kinds, strict=True)]
        self._moved = [_moved(word, sides, kinds) for word in action.words]
        self.linear = self._linear()

    def _linear(self) -> PermutationAction:
        """ρ as a signed permutation of the flattened last dims."""
        points = range(1 if self.swap is None else len(self.swap))
        n = self._inner[-1]
        perm, signs = [], []
        for word, (rows, ends) in zip(self.action.words, self._moved, strict=True):
            come_from = self.swap if self.swap is not None and _mirrors(word) else points
            sources = [n * come_from[point] + row for point in points for row in rows]
            order = sorted(range(len(sources)), key=sources.__getitem__)  # where each entry goes
            perm.append(order)
            signs.append([ends[i % n] for i in order])
        return permutation(perm, signs, group=self.group)

    def act(self, g: int | Tensor, t: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """g·t: coordinates on the image x → those of the same places on g·x.

        Args:
            g: the element; or (B,) int64 on t's device or the CPU, one for each sample.
            t: (\\*, \\*shape), any dtype that has negative numbers; whole numbers stay exact. A batch
                (B, \\*, \\*shape) for many elements.
            size: (H, W) of x, the same for all samples; needed unless coordinates are normalized.

        Raises:
            TypeError, ValueError: g is not an element, t has other last dims, no size.

        Example:
            >>> points = torch.tensor([[3.0, 1.0], [3.0, 1.0]])
            >>> keypoints("c4").act(torch.tensor([0, 1]), points, (4, 6)).tolist()
            [[3.0, 1.0], [1.0, 3.0]]
        """
        ends = self._ends(size)
        return self._applied(g, t, [(h, ends) for h in range(self.action.order)], False)

    def undo(self, g: int | Tensor, t: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """g⁻¹·t: coordinates that were found on g·x → those of the same places on x, whose size is (H, W).

        Example:
            >>> keypoints("c4").undo(1, torch.tensor([1.0, 3.0]), (4, 6)).tolist()
            [3.0, 1.0]
        """
        ends = self._ends(size)
        shown = [ends[::-1] if _turns(word) else ends for word in self.action.words]
        return self._applied(g, t, list(zip(self.group.inverse.tolist(), shown, strict=True)), True)

    def _ends(self, size: object) -> list[int]:
        """The coordinates' largest values down and to the right."""
        return [end - (self.units == "center") for end in self._size(size)]

    def _far(self, g: int, ends: Sequence[int]) -> list[int]:
        """What is added to each entry of the last dim: where it is counted from the other end."""
        rows, signs = (part[: self._entries] for part in self._moved[g])
        return [ends[self._sides[row]] if sign < 0 else 0 for row, sign in zip(rows, signs, strict=True)]

    def _applied(self, g: int | Tensor, t: Tensor, moves: list[tuple[int, list[int]]], inverse: bool) -> Tensor:
        """``moves``: for each g the element that moves entries, and the ends that they are then counted from."""
        many = isinstance(g, Tensor) and g.dim() > 0
        one = 0 if many else element("g", g, self.action.order, self.action.name)
        if not isinstance(t, Tensor):
            raise TypeError(f"t: expected a torch.Tensor, got {type(t).__name__}")
        self.check("t", t)
        if not many:
            return self._moved_all(moves[one][0], t, moves[one][1])
        if t.dim() < 1 + len(self.shape):
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"t: expected a batch (B, …, {expected}) for many elements, got shape {tuple(t.shape)}")
        return self._moved_each(cast(Tensor, g), t, [self._far(*move) for move in moves], inverse)

    def _moved_all(self, g: int, t: Tensor, ends: Sequence[int]) -> Tensor:
        rows, signs = (part[: self._entries] for part in self._moved[g])
        if self.swap is not None and _mirrors(self.action.words[g]):
            t = t.index_select(-2, listed(self.swap, t.device))
        moved = self._with_far(t).index_select(-1, listed(rows, t.device))
        return moved * _numbers(signs, t) + _numbers(self._far(g, ends), t)

    def _moved_each(self, g: Tensor, t: Tensor, far: list[list[int]], inverse: bool) -> Tensor:
        """Every sample by its own element, which ``far`` tells what to add for."""
        moved = act(self._with_far(t).flatten(-len(self.shape)), g, self.linear, inverse, name="g")
        added = _numbers([number for row in far for number in row], t).view(len(far), -1)
        added = added.index_select(0, elements_on(g, t.device).flatten())
        return self._known(moved) + added.view(*g.shape, *(1,) * (t.dim() - g.dim() - 1), added.shape[-1])

    def _with_far(self, t: Tensor) -> Tensor:
        """Boxes "xywh" with their right and bottom, one of which a mirrored left or top is, behind."""
        return torch.cat((t, t[..., :2] + t[..., 2:]), -1) if self.format == "xywh" else t

    def _known(self, t: Tensor) -> Tensor:
        """What ``linear`` has moved, (\\*, n), as (\\*, \\*shape)."""
        t = t.unflatten(-1, self._inner)  # type: ignore[no-untyped-call]
        return t[..., : self._entries] if self.format == "xywh" else t

    def check(self, name: str, t: Tensor) -> None:
        """That the last dims of t are those of these coordinates."""
        if t.dim() < len(self.shape) or tuple(t.shape[-len(self.shape) :]) != self.shape:
            expected = ", ".join(map(str, self.shape))
            raise ValueError(f"{name}: expected coordinates (…, {expected}), got shape {tuple(t.shape)}")

    def from_middle(self, y: Tensor, elements: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Coordinates found on the views of x, (|G|, \\*, \\*shape), measured from each view's middle, (|G|, \\*, n).

        ``elements`` are the group's in the order of y.
        """
        self.check("output", y[0])
        turned = [_turns(self.action.words[g]) for g in elements]
        middles = _numbers([end for turn in turned for end in self._middle(size[::-1] if turn else size)], y)
        y = self._with_far(y) - middles.view(len(elements), *(1,) * (y.dim() - 2), -1)
        return y.flatten(-len(self.shape))

    def from_corner(self, t: Tensor, size: tuple[int, int]) -> Tensor:
        """What is measured from the middle of x, (\\*, n), as coordinates on x, (\\*, \\*shape)."""
        return self._known(t) + _numbers(self._middle(size)[: self._entries], t)

    def _middle(self, size: tuple[int, int]) -> list[float]:
        scale, shift = _HALF[self.units]
        return [scale * size[side] + shift if side >= 0 else 0.0 for side in self._sides]

    def _size(self, size: object) -> tuple[int, int]:
        if self.units == "normalized":
            return 1, 1
        if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2:
            raise ValueError(f"size: expected (H, W) of the image, in whose pixels the units count, got {size!r}")
        return checks.whole("size", size[0], 0), checks.whole("size", size[1], 0)

    def __repr__(self) -> str:
        return f"Coordinates({self.action.name!r}, shape {self.shape}, units {self.units!r})"


def _numbers(values: Sequence[float], like: Tensor) -> Tensor:
    """Whole numbers or halves as a tensor of another's dtype and device, where they are made: see ``listed``."""
    if torch.compiler.is_compiling() and values:  # of sides of any length, which a list would take for these alone
        return torch.stack([like.new_full((), value) for value in values])
    if like.is_cpu or not values:
        return like.new_tensor(values)
    least = math.floor(min(values))
    found = listed([int(2 * (value - least)) for value in values], like.device)
    if not like.is_floating_point():
        return (found // 2 + least).to(like.dtype)
    return (found.to(torch.promote_types(like.dtype, torch.float32)) * 0.5 + least).to(like.dtype)


def keypoints(
    action: GridAction | str, swap: Sequence[int] | None = None, units: Units = "edge", extra: int = 0
) -> Coordinates:
    """What a group of rotations and flips does to points (…, 2) on an image.

    Args:
        action: what the group does to the image, or its name such as ``"d4"``.
        swap: which keypoint becomes which when the image is mirrored, so that a left hand stays one: keypoint
            ``swap[n]`` becomes keypoint n. Rotations leave them alone. None where points have no sides.
        units: see the module.
        extra: how many numbers follow x and y that nothing moves, such as a score.

    Shapes:
        (\\*, 2 + extra), or (\\*, len(swap), 2 + extra) with a swap.

    Raises:
        TypeError: an action that is none of images.
        ValueError: an unknown name or unit; a swap that does not undo itself.

    Example:
        >>> import torch
        >>> from equikern import EquiTune
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(6), torch.nn.Unflatten(1, (3, 2)))
        >>> points = keypoints("hflip", swap=[1, 0, 2])  # left eye, right eye, nose
        >>> model, x = EquiTune(model, "hflip", points), torch.rand(2, 3, 4, 6)
        >>> torch.allclose(model(x.flip(-1)), points.act(1, model(x), (4, 6)), atol=1e-5)
        True
    """
    checks.choice("units", units, tuple(_HALF))
    extra = checks.whole("extra", extra, 0)
    if swap is not None:
        swap = _involution(swap)
    return Coordinates(_images(action), units, [1, 0, *(-1,) * extra], ["=", "=", *"." * extra], swap)


def boxes(action: GridAction | str, format: Format = "xyxy", units: Units = "edge") -> Coordinates:
    """What a group of rotations and flips does to boxes (…, 4) with sides along the image's.

    Args:
        action: what the group does to the image, or its name such as ``"d4"``.
        format: ``"xyxy"``: left, top, right and bottom; ``"xywh"``, as in COCO: left, top, width and height;
            ``"cxcywh"``: the middle, width and height.
        units: see the module. Boxes of whole pixels, the last one included, count from the pixels' centers.

    Raises:
        TypeError: an action that is none of images.
        ValueError: an unknown name, format or unit.

    Example:
        >>> boxes("c4").act(1, torch.tensor([0.0, 1.0, 2.0, 4.0]), (4, 6)).tolist()
        [1.0, 4.0, 4.0, 6.0]
        >>> boxes("c4", "xywh").act(1, torch.tensor([0.0, 1.0, 2.0, 3.0]), (4, 6)).tolist()
        [1.0, 4.0, 3.0, 2.0]
        >>> boxes("c4", "cxcywh").act(1, torch.tensor([1.0, 2.5, 2.0, 3.0]), (4, 6)).tolist()
        [2.5, 5.0, 3.0, 2.0]
    """
    checks.choice("format", format, tuple(_KINDS))
    checks.choice("units", units, tuple(_HALF))
    kinds = _KINDS[format]
    return Coordinates(_images(action), units, [1, 0] * (len(kinds) // 2), kinds, format=format)


def heat_maps(action: GridAction | str, swap: Sequence[int]) -> FieldAction:
    """What a group of rotations and flips does to heat maps (…, N, H, W) with a channel for each keypoint.

    Without a swap, heat maps move as any image does: that is the grid's action itself.

    Args:
        action: what the group does to the image, or its name such as ``"d4"``.
        swap: channel ``swap[n]`` becomes channel n when the image is mirrored, as in ``keypoints``.

    Raises:
        TypeError: an action that is none of images.
        ValueError: an unknown name, a swap that does not undo itself.

    Example:
        >>> from equikern import EquiTune
        >>> maps, x = heat_maps("d4", [1, 0, 2]), torch.rand(2, 3, 6, 8)
        >>> model = EquiTune(torch.nn.Conv2d(3, 3, 3, padding=1), "d4", maps)
        >>> torch.allclose(model(x.flip(-1)), maps.act(4, model(x)), atol=1e-5)
        True
    """
    grid_action, swap = _images(action), _involution(swap)
    rows = [swap if _mirrors(word) else list(range(len(swap))) for word in grid_action.words]
    return field(grid_action, permutation(rows, group=grid_action.group))


def _moved(word: str, sides: Sequence[int], kinds: Sequence[str]) -> tuple[list[int], list[int]]:
    """For each entry of g·t the entry of t that it is, and whether that is counted from the other end.

    A side is 1 for x, 0 for y. Kinds: "=" a place, "<" and ">" the smaller and larger one of two, "|" a length, and "."
    what nothing moves.
    """
    rows, signs = [], []
    for i, (side, kind) in enumerate(zip(sides, kinds, strict=True)):
        if kind == ".":
            rows.append(i)
            signs.append(1)
            continue
        source, back = sides_of(word)[side]
        reverse = back and kind != "|"
        wanted = {"<": ">", ">": "<"}.get(kind, kind) if reverse else kind
        rows.append(next(j for j, entry in enumerate(zip(sides, kinds, strict=True)) if entry == (source, wanted)))
        signs.append(-1 if reverse else 1)
    return rows, signs


def _turns(word: str) -> bool:
    """Whether the element exchanges height and width."""
    return axes_of(word) is not None


def _mirrors(word: str) -> bool:
    """Whether the element turns left hands into right ones: an odd number of flips and transpositions."""
    return (sum(back for _, back in sides_of(word)) + _turns(word)) % 2 == 1


def _images(action: object) -> GridAction:
    if isinstance(action, str):
        try:
            action = grid(action)
        except ValueError as error:
            raise ValueError(f"action{str(error).removeprefix('name')}") from None
    if not isinstance(action, GridAction) or action.dims != 2:
        raise TypeError(f"action: expected one on images, such as grid('d4') or its name, got {action!r}")
    return action


def _involution(swap: object) -> list[int]:
    if isinstance(swap, Tensor) and swap.layout is torch.strided and not swap.is_meta:
        swap = swap.tolist()
    if not isinstance(swap, Sequence):
        raise TypeError(f"swap: expected a list of numbers, got {kind_of(swap)}")
    rows = [index("swap", n) for n in swap]
    if not rows or sorted(rows) != list(range(len(rows))) or any(rows[rows[n]] != n for n in rows):
        raise ValueError(f"swap: expected the numbers 0 … N − 1 with pairs exchanged, got {rows}")
    return rows
