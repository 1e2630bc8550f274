"""The systems of the papers around one network: plain, equitune, equizero, and those of a product of groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from equikern import EquiTune, EquiZero, TokenAction, product_action
from equikern.nn import ProductEquiTune
from equikern.nn.commuting import mean_of_terms, representatives
from torch import Tensor, nn

from .data import END_ID, Data, Split, action_swap, lengths, word_swap
from .names import PRODUCTS, SYSTEMS
from .network import exact, real

Model = Callable[..., Tensor]


def unsure(log_probs: Tensor) -> Tensor:
    """Equizero's loss of views (n, B, T, actions): −the mean over a sequence of its largest probabilities, (n, B).

    The mean is over the positions that the sequence has, its end included.
    """
    there = real(log_probs)
    best = log_probs.amax(-1).exp() * there
    return -best.sum(-1) / there.sum(-1)


def swaps(split: Split) -> tuple[list[TokenAction], list[TokenAction]]:
    """The split's groups of two elements, on the words and on the actions."""
    pairs = split.swaps
    return [word_swap(split.language, *pair) for pair in pairs], [action_swap(split.language, *pair) for pair in pairs]


def system(name: str, network: nn.Module, split: Split) -> nn.Module:
    """One of ``SYSTEMS`` or ``PRODUCTS``, which shares the network.

    Each is called as the network is: with commands, and in training with targets, which are seen as the commands are.
    """
    on_words, on_actions = swaps(split)
    if name == "plain":
        return network
    if name == "product equitune":
        specs = [{"ids": w, "targets": a} for w, a in zip(on_words, on_actions, strict=True)]
        return ProductEquiTune(network, specs, [a.logits for a in on_actions])
    if name == "product equizero":
        return ProductEquiZero(network, on_words, on_actions)
    word = product_action(*on_words) if len(on_words) > 1 else on_words[0]
    action = product_action(*on_actions) if len(on_actions) > 1 else on_actions[0]
    inp, out = {"ids": word, "targets": action}, action.logits  # type: ignore[attr-defined]
    if name == "equitune":
        return EquiTune(network, inp, out)
    if name == "equizero":
        return EquiZero(network, inp, out, loss=unsure)
    raise ValueError(f"name: expected one of {', '.join(SYSTEMS + PRODUCTS)}, got {name!r}")


class ProductEquiZero(nn.Module):
    """``ProductEquiTune`` with the surest view of every factor in the place of the mean of its views.

    ``M(X) = 1/N Σ_i Sym_{G_j, j≠i}[ g*⁻¹ M(g* · Π_{j≠i} c_j(X)) ]``, ``g*`` the surest of G_i
    """

    def __init__(self, network: nn.Module, on_words: list[TokenAction], on_actions: list[TokenAction]) -> None:
        super().__init__()
        self.outs = [action.logits for action in on_actions]
        self.factors = nn.ModuleList(
            EquiZero(network, {"ids": word, "targets": action}, action.logits, loss=unsure)
            for word, action in zip(on_words, on_actions, strict=True)
        )
        self.standing = list(zip(representatives(on_words), representatives(on_actions), strict=True))

    def forward(self, ids: Tensor, targets: Tensor | None = None, forced: Tensor | None = None) -> Tensor:
        """As the network's, one forward for every element of every factor."""
        terms = []
        for i, factor in enumerate(self.factors):
            seen, along = ids, targets
            for j, (word, action) in enumerate(self.standing):
                if j != i:
                    seen, along = word[seen], None if along is None else action[along]
            terms.append(factor(seen, along, forced))
        return mean_of_terms(terms, self.outs)


@torch.no_grad()
def accuracy(model: Model, data: Data, size: int = 256) -> float:
    """Share of sentences translated exactly, in batches of similar lengths."""
    order = lengths(data.targets, END_ID["actions"]).argsort()
    right = 0
    for places in order.split(size):
        some = data.of(places)
        right += int(exact(model(some.ids), some.targets).sum())
    return right / len(order)
