"""What the wrappers share: a backbone run on every view of a batch, its outputs walked and merged view by view."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..actions import Action
from ..coordinates import Coordinates
from ..core import checks
from ..core.act import listed
from ..ops.checked import undo_each
from ..views import EXACT, FLOATS
from ..views.grid import sides_named
from .inputs import NOT_GIVEN, Given, Inputs
from .joined import join, ranks_of, tied
from .merging import Gathered, Merge, Output
from .models import own_loss, with_loss
from .outputs import Fitted, MergedOutputs
from .specs import InputSpec, OutputSpec, acting, input_actions, output_actions
from .tables import ActionTables

if TYPE_CHECKING:
    from .joined import Mesh

__all__ = ["Call", "MakeMerge", "OrbitModule", "check_views", "in_group_order"]

MakeMerge = Callable[[Output], Merge]
Call = Callable[[Sequence[Any], Mapping[str, Any], int], "tuple[Any, Tensor | None]"]


class OrbitModule(nn.Module):
    """A backbone run on the |G| views of a batch; subclasses say how its outputs are merged.

    Attributes:
        backbone: the wrapped model.
        inp: the action on the input; of several inputs, on the one that leads: the first on a grid, or the first.
        out: the action on every output, in the containers they come in.
        strict: whether outputs that are not listed are an error.
        views_per_forward: the most views of one forward, or None.
        ranks: the processes that share the views, or None.
    """

    _tells_of_maps = False  # whether an output that has the input's sides and does not turn may be a slip
    _gives_loss = False  # whether forward computes the model's own loss of merged logits, and so keeps its labels

    def __init__(
        self,
        backbone: Callable[..., Any],
        inp: InputSpec,
        out: OutputSpec,
        views_per_forward: int | None = None,
        strict: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        checks.model("backbone", backbone)
        self.backbone = backbone
        inputs, self.inp = input_actions("inp", inp)
        self.out = output_actions(out, self.inp)
        self._inputs = Inputs(inputs, backbone, self._gives_loss and own_loss(backbone))
        outputs = [spec.linear if isinstance(spec, Coordinates) else spec for spec in acting(self.out)]
        self._tables = ActionTables([*acting(inputs), *outputs])
        check_views(views_per_forward)
        self.views_per_forward = views_per_forward
        checks.flag("strict", strict)
        self.strict = strict
        self.ranks = ranks_of(mesh, type(self).__name__)
        if self.ranks is not None:
            self.ranks.listen(self)

    def views(self, x: Any = NOT_GIVEN, /, *args: Any, **kwargs: Any) -> Any:
        """Every view's output, transformed back and not merged: (|G|, B, …) for each output, in the group's order.

        What the merged output is made of: for looking at single views, or a merge of your own. Integers, too, where
        their action only moves them.
        """
        return self._merged(self._inputs.given(x, args, kwargs), lambda output: Gathered(output, _undone), EXACT)

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any], count: int) -> tuple[Any, Tensor | None]:
        """The model on a batch of so many views, and what it says of each of them, (n·B,), that the merge needs."""
        return self.backbone(*args, **kwargs), None

    def _beside(self, fitted: Fitted, beside: Tensor | None) -> Tensor | None:
        """What the merge needs beside the outputs (n, B, …) of some views: (n, B)."""
        return beside

    def _parts(self, given: Given) -> list[list[int]]:
        """The elements of every forward, those of other processes too: views of one shape, as many as are allowed."""
        return given.parts(self.views_per_forward, self.ranks)

    def _forwards(
        self, given: Given, parts: list[list[int]], call: Call | None = None
    ) -> Iterator[tuple[list[int], Any, Tensor | None]]:
        """For every part that this process runs its elements, the outputs (n, B, …) and what is beside them."""
        if self.ranks is None:
            return self._run_each(given, parts, call)
        self.ranks.listen(self)
        own, spare = self.ranks.own(parts)
        forwards = self._run_each(given.each(self.ranks.entered), own, call)
        return _behind(forwards, min(spare, len(own) - 1))

    def _run_each(
        self, given: Given, parts: list[list[int]], call: Call | None
    ) -> Iterator[tuple[list[int], Any, Tensor | None]]:
        call = self._call if call is None else call
        for elements in parts:
            # Nothing here may hold an output while the next one is made.
            yield elements, *self._split(*self._run(call, elements, given), elements, given)

    def _run(self, call: Call, elements: list[int], given: Given) -> tuple[Any, Tensor | None]:
        args, kwargs = given.seen(elements, self._tables)
        return self._tried(call, args, kwargs, len(elements) * given.batch, given)

    def _tried(
        self, call: Call, args: list[Any], kwargs: dict[str, Any], count: int, given: Given
    ) -> tuple[Any, Tensor | None]:
        """A call for views (count, …), whose errors say so if a single image may have been taken for a batch."""
        if not given.may_lack_batch or torch.compiler.is_compiling():
            return call(args, kwargs, count)
        try:
            return call(args, kwargs, count)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            if type(error) not in (RuntimeError, ValueError, TypeError, IndexError):  # such as torch.OutOfMemoryError
                raise
            x = given.x
            volumes = given.action.sides == 3
            single = f"a single {'volume' if volumes else 'image'} with channels is x[None]"
            raise ValueError(
                f"x: {tuple(x.shape)} was taken for a batch of {len(x)} ({checks.moved(given.action)}), with which the "
                f"backbone fails; {single}{', and images take a group such as d4' * volumes}. It says: {error}"
            ) from error

    def _split(
        self, outputs: Any, beside: Tensor | None, elements: list[int], given: Given
    ) -> tuple[Any, Tensor | None]:
        order, batch = len(elements), given.batch
        spec = self.out
        if given.trains and isinstance(spec, dict) and "loss" not in spec:
            spec = {**spec, "loss": None}  # of the views, not of what they are merged into
        fitted = Fitted(outputs, spec, order, batch, self.strict)
        if beside is not None:
            beside = beside.unflatten(0, (order, batch))  # type: ignore[no-untyped-call]
        return fitted, self._beside(fitted, beside)

    def _merged(
        self,
        given: Given,
        make: MakeMerge,
        dtypes: frozenset[torch.dtype] = FLOATS,
        call: Call | None = None,
        parts: list[list[int]] | None = None,
    ) -> Any:
        """The merged outputs of a call: every output's views go to the merge that ``make`` gives for it."""
        return self._each_merged(given, make, dtypes, call, parts).whole()

    def _each_merged(
        self,
        given: Given,
        make: MakeMerge,
        dtypes: frozenset[torch.dtype] = FLOATS,
        call: Call | None = None,
        parts: list[list[int]] | None = None,
    ) -> MergedOutputs:
        """The same, each output by itself."""
        first, merges = None, None
        parts = self._parts(given) if parts is None else parts
        for elements, fitted, beside in self._forwards(given, parts, call):
            if merges is None:
                turned, specs = given.turned, [spec for _, spec in fitted.pairs]
                first = specs, fitted.names, fitted.made
                outputs = [self._output(spec, given.x, turned, dtypes) for spec in specs]
                for output, name in zip(outputs, fitted.names, strict=True):
                    output.name = name
                self._warn_of_maps(fitted, given)
                merges = [make(output) for output in outputs]
            _add(merges, fitted.pairs, elements, beside)
            del fitted, beside
        assert first is not None
        assert merges is not None
        if self.ranks is not None:
            for merge in merges:
                join(merge, self.ranks, parts)
        return MergedOutputs([merge.result() for merge in merges], *first)

    def _warn_of_maps(self, fitted: Fitted, given: Given) -> None:
        """Of outputs that are averaged as they are, though they have the sides of the input, which views turn."""
        sides = given.action.sides
        if not sides or not self._tells_of_maps or torch.compiler.is_compiling():
            return
        there = given.x.shape[-sides:]
        for (y, spec), name in zip(fitted.pairs, fitted.names, strict=True):
            still = isinstance(spec, Action) and spec.order > 1 and spec.views.kind.still
            if still and y.dim() >= 2 + sides and y.shape[-sides:] == there and min(there) > 1:
                shape = ", ".join(map(str, y.shape[2:]))
                warnings.warn(
                    f"out{name}: 'trivial' merges outputs (B, {shape}) as they are, but they have the input's "
                    f"{sides_named(sides)}: for a map that turns with the input, write {given.action.name!r}",
                    stacklevel=2,
                )

    def _with_loss(self, given: Given, merged: Any) -> Any:
        """The merged outputs, in front of them the model's own loss of the logits, where it was asked for."""
        if given.labels is None or not self._keeps_logits:
            return merged
        return with_loss(self.backbone, merged, given.labels, given.beside, self.out)

    @property
    def _keeps_logits(self) -> bool:
        """Whether merged logits are logits."""
        return True

    def _of_all(self, found: list[Tensor], parts: list[list[int]]) -> Tensor:
        """What was found of the views of each part, (n, …), of all views in the group's order."""
        t = torch.cat(found)
        if self.ranks is not None:
            t = self.ranks.gathered(t, sum(map(len, parts)), "what is said of all views")
        return in_group_order(t, [g for part in parts for g in part])

    def _output(self, spec: Any, x: Tensor, turned: bool, dtypes: frozenset[torch.dtype]) -> Output:
        size = (x.shape[-2], x.shape[-1]) if x.dim() > 1 else (1, 1)
        if not isinstance(spec, Coordinates):
            return Output(self._tables(spec), None, size, turned, dtypes)
        if not self._averages:
            raise ValueError(f"out: {spec!r} takes a mean or the choice of a view, got {self.extra_repr()}")
        return Output(self._tables(spec.linear), spec, size, turned, dtypes)

    @property
    def _averages(self) -> bool:
        """Whether merged coordinates do not depend on where they are counted from."""
        return True

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the backbone."""
        return f"inp={self._inputs.actions!r}, out={self.out!r}"


def _add(merges: list[Merge], pairs: list[tuple[Tensor, Any]], elements: list[int], beside: Tensor | None) -> None:
    for merge, (y, _) in zip(merges, pairs, strict=True):
        merge.add(y, elements, beside)


def _behind(
    forwards: Iterator[tuple[list[int], Any, Tensor | None]], spare: int
) -> Iterator[tuple[list[int], Any, Tensor | None]]:
    """Forwards without the first ``spare`` ones, which the backward pass still goes through."""
    # Each output beside its own, so that one without gradient has none on any process.
    unused = [[y for y, _ in next(forwards)[1].pairs] for _ in range(spare)]
    for elements, fitted, beside in forwards:
        fitted.pairs = [(tied(y, [ys[k] for ys in unused]), spec) for k, (y, spec) in enumerate(fitted.pairs)]
        yield elements, fitted, beside
        del fitted, beside


def check_views(views_per_forward: object) -> None:
    """None, or a whole number from 1."""
    if views_per_forward is None:
        return
    checks.whole("views_per_forward", views_per_forward, 1)


def in_group_order(t: Tensor, elements: Sequence[int], axis: int = 0) -> Tensor:
    """A group axis in the order of the group's elements, from the order that they came in."""
    if list(elements) == list(range(len(elements))):
        return t
    places = sorted(range(len(elements)), key=elements.__getitem__)
    return t.index_select(axis, listed(places, t.device))


def _undone(y: Tensor, action: Action, _: Tensor | None, elements: list[int]) -> Tensor:
    return in_group_order(undo_each("output", y, action), elements)
