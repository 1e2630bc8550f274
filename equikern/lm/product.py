"""``ProductEquiLM``: several groups that exchange words, gender and origin for example, at the cost of their sum."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ..actions import TokenAction, product_action
from ..nn.commuting import check_commuting, looked_up, mean_of_terms, representatives
from ..nn.tables import ActionTables
from ..ops import orbit, orbit_mean
from . import models
from .equilm import EquiLM, Space, log_of, mean_of_some, single
from .storage import made, told
from .words import WordLists

if TYPE_CHECKING:
    from ..nn.joined import Mesh

__all__ = ["ProductEquiLM"]


class ProductEquiLM(EquiLM):
    """A causal language model equivariant to a product of groups in Σ|G_i| views a sentence (arXiv 2310.09675).

        ``1/N Σ_i Sym_{G_j, j≠i}[ 1/|G_i| Σ_g g⁻¹ M(g · Π_{j≠i} c_j(x)) ]``

    Gender × race × orientation, each with word lists of its own: ``P(g x₂ | g x₁) = P(x₂ | x₁)`` for every g of the
    product, for which ``EquiLM`` with ``product_action`` takes Π|G_i| views. The map c_j replaces each word by the one
    that stands for its orbit under factor j, so that of the terms only the one for a factor sees its words: the
    averages of the two wrappers differ, their symmetry does not.

    A factor's words may be those of another's as long as both act in accord, as for tokens that say two things at once
    (factors ``[[a, b], [c, d]]`` and ``[[a, c], [b, d]]``): the first words of a factor's lists stand for their orbits,
    and where the other factors take such a word, that word does. What cannot be chosen so is refused, words named.

    ``space``, ``generate``, the cache (of Σ|G_i|·B rows), ``labels``, ``save_pretrained`` and ``from_pretrained`` are
    those of ``EquiLM``. The loss is the cross-entropy of the merged logits.

    Args:
        model: a causal ``transformers`` model; reachable as ``.model``.
        factors: for each factor ``WordLists`` without general words, or ``tokens(perm)`` on the model's vocabulary.
        space, views_per_forward, mesh: as in ``EquiLM``.

    Attributes:
        factors: the factors' actions.
        action: the action of their product.
        forwards: Σ|G_i|.

    Raises:
        TypeError: factors that are no list, a factor that is neither.
        ValueError: no factor, factors that do not commute or for whose orbits nothing can stand, general words, and
            what ``EquiLM`` refuses.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2, eos_token_id=0, bos_token_id=None, pad_token_id=0)
        >>> gender, origin = WordLists([[1, 2]], size=20), WordLists([[3, 4, 5]], size=20)
        >>> lm = ProductEquiLM(LlamaForCausalLM(config).eval(), [gender, origin])
        >>> x = torch.tensor([[7, 1, 3, 9]])
        >>> gx = torch.tensor([[7, 2, 5, 9]])
        >>> p, gp = lm(x).logits.softmax(-1)[0, -1], lm(gx).logits.softmax(-1)[0, -1]
        >>> torch.allclose(gp[[2, 1, 5, 3, 4]], p[[1, 2, 3, 4, 5]], atol=1e-5), lm.forwards, lm.action.order
        (True, 5, 6)
    """

    def __init__(
        self,
        model: nn.Module,
        factors: Sequence[TokenAction | WordLists],
        space: Space | None = None,
        views_per_forward: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        models.check(model)
        if not isinstance(factors, (list, tuple)):
            raise TypeError(f"factors: expected a list of WordLists or tokens(perm), got {type(factors).__name__}")
        if not factors:
            raise ValueError("factors: expected one or more, got none")
        found = [_factor(model, i, factor) for i, factor in enumerate(factors)]
        actions = tuple(action for action, _ in found)
        check_commuting("factors", actions)
        names = {v: word for _, words in found if words is not None for v, word in words.names.items()}
        first = [[] if words is None else [row[0] for row in words.equality] for _, words in found]
        standing = representatives(
            actions, first, lambda v: f"{names[v]!r} (token {v})" if v in names else f"token {v}"
        )
        whole = product_action(*actions) if len(actions) > 1 else actions[0]
        assert isinstance(whole, TokenAction)
        super().__init__(model, whole, space, views_per_forward, mesh)
        self.factors = actions
        self._tables = ActionTables([*self._actions(), *actions, *(action.logits for action in actions)])
        self.lists = tuple(words for _, words in found)
        self._count = self.forwards
        # What the term of each factor sees of every word.
        seen = torch.arange(whole.size, device="cpu").repeat(len(actions), 1)
        for i in range(len(actions)):
            for j, c in enumerate(standing):
                if j != i:
                    seen[i] = c[seen[i]]
        self.register_buffer("_seen", seen, persistent=False)

    @property
    def forwards(self) -> int:
        """Σ|G_i|, the views of every sentence."""
        return sum(action.order for action in self.factors)

    def _orbit(self, ids: Tensor) -> Tensor:
        pairs = zip(self.get_buffer("_seen"), self.factors, strict=True)
        return torch.cat([orbit(looked_up("input_ids", row, ids), self._tables(action)) for row, action in pairs])

    def _merged(self, y: Tensor) -> Tensor:
        """(n, B, S, V) → (B, S, V), see the class."""
        if self.ranks is not None:
            return super()._merged(y)
        parts = torch.split(y, [action.order for action in self.factors])
        actions = [self._tables(action.logits) for action in self.factors]
        if self.space != "probs":
            return mean_of_terms(map(orbit_mean, parts, actions, repeat(self.space)), actions)
        terms = map(orbit_mean, map(single, parts), actions, repeat(self.space))
        return log_of(mean_of_terms(terms, actions)).to(y.dtype)

    def _part(self, y: Tensor) -> Tensor:
        actions = [self._tables(action.logits) for action in self.factors]
        own, start, done = self._own(), 0, 0
        terms: list[Tensor | None] = []
        for action in actions:
            some = [g - start for g in own if start <= g < start + action.order]
            part = y[done : done + len(some)]
            terms.append(mean_of_some(part, action, some, self.space) if some else None)
            start, done = start + action.order, done + len(some)
        return mean_of_terms(terms, actions)

    def _loss(self, y: Tensor, merged: Tensor, target: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
        return models.loss(single(merged), target, self.space is None, reduction)

    def _told(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        pairs = enumerate(zip(self.factors, self.lists, strict=True))
        return {"factors": [told(action, words, tensors, str(i)) for i, (action, words) in pairs]}

    @classmethod
    def _made(cls, said: dict[str, Any], tensors: dict[str, Tensor]) -> list[TokenAction | WordLists]:
        return [made(factor, tensors, str(i)) for i, factor in enumerate(said["factors"])]

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the model."""
        pairs = zip(self.factors, self.lists, strict=True)
        acts = ", ".join(repr(action if words is None else words) for action, words in pairs)
        return f"factors=[{acts}], space={self.space!r}"


def _factor(model: nn.Module, i: int, factor: object) -> tuple[TokenAction, WordLists | None]:
    try:
        action, words = models.action_of(model, factor)
    except (TypeError, ValueError) as error:
        raise type(error)(f"factors[{i}]{str(error).removeprefix('action')}") from None
    if words is not None and words.has_general:
        raise ValueError(f"factors[{i}]: expected lists without general words, got {words!r}")
    return action, words
