"""``EquiLM`` and ``REquiLM``: a causal language model averaged over a group that exchanges words."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ..actions import Action, PermutationAction, TokenAction
from ..core import checks
from ..nn.joined import neutral, ranks_of, tied
from ..nn.tables import ActionTables
from ..nn.views import check_views
from ..ops import orbit, orbit_cross_entropy, orbit_mean
from ..ops.checked import orbit_sum
from ..views import accumulator
from . import frames, models, states
from .generation import Generates, refuse
from .storage import Stored
from .words import WordLists

if TYPE_CHECKING:
    from ..nn.joined import Mesh

__all__ = ["EquiLM", "REquiLM"]

Space = Literal["probs", "log_probs"]


class EquiLM(Stored, Generates):  # type: ignore[misc]  # Stored's files hold a wrapper, not a model alone
    """A causal language model made equivariant: ``1/|G| Σ_g g⁻¹ M(g x)`` (EquiLM, arXiv 2210.06475).

    The group exchanges words, such as *man* and *woman*; the model sees all |G| views of every sentence as one batch of
    |G|·B rows, and its predictions are transformed back and averaged. Then ``P(g x₂ | g x₁) = P(x₂ | x₁)`` for every g:
    what it says of a man it says of a woman. Nothing is added to learn; gradients reach the model.

    ============= ==================================================== ===========================================
    space         ``logits``                                           ``loss``, per predicted word
    ============= ==================================================== ===========================================
    None          the mean of the views' logits                        −log softmax(logits)
    ``probs``     the logarithm of the mean of their probabilities     −logits: they are normalised
    ``log_probs`` the mean of their log-probabilities: those of None   −logits: the mean of the views' losses,
                  but for a constant, so the same predictions          not below the loss of None
    ============= ==================================================== ===========================================

    ``generate`` is transformers' own (greedy, sampling, beams; the cache holds |G|·B rows, view by view, and is passed
    from token to token). It runs in the prompts' canonical form: every prompt is first taken to the lexicographically
    smallest of its |G| transforms, and the result is mapped back. For an equivariant model this changes no
    probability, but it makes the same seed give exactly transformed samples: for prompts x and g x in the same places
    of a batch, the outputs are Y and g Y bit for bit. (Where g fixes x, as where x has no word of E, the prompt is the
    same and so is the sample.) Processors, stopping criteria, streamers and returned scores speak of the user's ids.

    Args:
        model: a causal ``transformers`` model; reachable as ``.model``, state_dict keys have the prefix ``model.``.
        action: ``tokens(perm)`` on the model's vocabulary, or ``WordLists`` without general words.
        space: what is averaged, see above.
        views_per_forward: run the model on at most so many views at a time, to cap the memory of a forward without
            cache, as in training or scoring; all of them by default. (While gradients are recorded, every forward's
            activations are kept all the same.) A forward with a cache runs all views at once.
        mesh: as in ``EquiTune``. Each process then has the cache of its own views alone. ``generate`` runs on all of
            them, with the random numbers of the first, so that all give the same; what stops by a clock would not.

    Raises:
        TypeError: a model that is no module with a config, an action that is neither.
        ValueError: an encoder-decoder, an action on another number of words, lists with general words, an unknown
            space, views_per_forward below 1.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2, eos_token_id=0, bos_token_id=None, pad_token_id=0)
        >>> lm = EquiLM(LlamaForCausalLM(config).eval(), WordLists([[1, 2, 3]], size=20))
        >>> x = torch.tensor([[7, 1, 9]])
        >>> gx = lm.action.act(1, x)
        >>> p, gp = lm(x).logits.softmax(-1), lm(gx).logits.softmax(-1)
        >>> torch.allclose(gp, lm.action.logits.act(1, p), atol=1e-5)
        True
        >>> samples = [lm.generate(t, do_sample=True, max_new_tokens=5) for t in (x, gx) if torch.manual_seed(0)]
        >>> torch.equal(samples[1], lm.action.act(1, samples[0]))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        action: TokenAction | WordLists,
        space: Space | None = None,
        views_per_forward: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        models.check(model)
        checks.choice("space", space, ("probs", "log_probs", None))
        check_views(views_per_forward)
        self.action, self.words = models.action_of(model, action)
        self._tables = ActionTables(self._actions())
        self._check_words()
        self.model = model
        self.training = model.training
        self.space: Space | None = space
        self.views_per_forward = views_per_forward
        self._count = self.action.order
        parameters = inspect.signature(model.forward).parameters
        self._takes = set(parameters)
        self._takes_more = any(one.kind == one.VAR_KEYWORD for one in parameters.values())
        self.ranks = ranks_of(mesh, type(self).__name__)
        if self.ranks is not None:
            self.ranks.listen(self.model)

    def _actions(self) -> list[TokenAction | PermutationAction]:
        """What the forward acts by."""
        return [self.action, self.action.logits]

    def _check_words(self) -> None:
        if self.words is not None and self.words.has_general:
            raise ValueError(
                f"action: EquiLM treats every word outside E as neutral, but {self.words!r} has general words, which "
                "keep the plain model's prediction; REquiLM takes them"
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_params: Any = None,
        num_items_in_batch: int | Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **inputs: Any,
    ) -> Any:
        """The averaged prediction for a batch of sentences.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S), 0 where there is padding, or what the model takes, with B first.
            position_ids: (B, S) or (1, S).
            past_key_values, cache_params: the cache of an earlier forward, by the model's name for it, with |G|·B rows,
                or B for each view of this process.
            labels: (B, S) int64, the words to predict, −100 where none; shifted by one here, as in transformers. Other
                losses, such as one with class weights or a z term, are of ``logits``, in which a model's softcap is
                already.
            use_cache, logits_to_keep: passed to the model. Labels need all logits.
            inputs_embeds, output_attentions, output_hidden_states: refused.
            return_dict: False for a tuple without the parts that are None.
            num_items_in_batch: divide the summed loss by this instead of by the number of words that are predicted
                here, so that gradients of several forwards add up to those of one, as ``Trainer`` wants them.
            token_type_ids, inputs: what else the model's forward takes: tensors (B, …), which are the same for every
                view, or (1, …), and what has no rows.

        Returns:
            ``CausalLMOutputWithPast``: ``loss`` (None without labels), ``logits`` (B, S, V), ``past_key_values``, or
            ``cache_params`` where the model calls it so.

        Raises:
            ValueError: no input_ids or ones outside 0 … V − 1, labels that do not fit or with logits_to_keep, an input
                that the model does not take, ``use_cache=True`` with a model whose state is no ``transformers.Cache``,
                a model that has been resized.
        """
        refuse("inputs_embeds", inputs_embeds)
        refuse("output_attentions", output_attentions)
        refuse("output_hidden_states", output_hidden_states)
        for name in ("shift_labels", "ignore_index"):
            if inputs.get(name) is not None:
                raise ValueError(f"{name}: the loss is of labels, which are shifted by one here, −100 where none is")
        ids = models.check_ids(input_ids)
        keep = logits_to_keep if isinstance(logits_to_keep, Tensor) or logits_to_keep != 0 else None
        if labels is not None:
            if keep is not None:
                raise ValueError("labels: the loss needs all logits, so expected no logits_to_keep beside them")
            models.check_labels(labels, ids)
        inputs |= {"attention_mask": attention_mask, "position_ids": position_ids, "token_type_ids": token_type_ids}
        inputs["logits_to_keep"] = keep
        caches = {"past_key_values": past_key_values, "cache_params": cache_params}
        y, caches = self._views(ids, inputs, caches, use_cache)
        merged = self._merged(y)
        loss = None
        if labels is not None:
            loss = self._loss(y, merged, models.shifted(labels), "mean" if num_items_in_batch is None else "sum")
            if num_items_in_batch is not None:
                loss = loss / models.count_of(num_items_in_batch, loss.device)
        output = states.Prediction(loss=loss, logits=merged, **caches)
        return output if return_dict is None or return_dict else output.to_tuple()

    # The parts.

    def _orbit(self, ids: Tensor) -> Tensor:
        """The sentences that the model sees, (views, B, S)."""
        return orbit(ids, self._tables(self.action))

    def _views(
        self, ids: Tensor, inputs: dict[str, Any], caches: dict[str, Any], use_cache: bool | None
    ) -> tuple[Tensor, dict[str, Any]]:
        """The logits (n, B, S, V) of every view that this process runs, and the caches of n·B rows."""
        own, batch = self._own(), ids.shape[0]
        views = self._orbit(ids)
        most = order = len(own)
        if self.ranks is not None:
            self.ranks.listen(self.model)
            inputs = {name: models.changed(value, self.ranks.entered) for name, value in inputs.items()}
            views, most = views[own[0] : own[-1] + 1], max(self.ranks.counts(self._count))
        size = self.views_per_forward or most
        caches = {name: value for name, value in caches.items() if value is not None}
        if caches or use_cache or size >= most:
            size = most
        elif use_cache is None:
            use_cache = False
        given = {name: value for name, value in inputs.items() if value is not None}
        keep = None if "logits_to_keep" in self._takes else given.pop("logits_to_keep", None)
        given |= caches
        unknown = [name for name in given if name not in self._takes and not self._takes_more]
        if unknown:
            raise ValueError(f"{unknown[0]}: {type(self.model).__name__} does not take it")
        if use_cache is not None and ("use_cache" in self._takes or self._takes_more):
            given["use_cache"] = use_cache
        parts: list[Tensor] = []
        spare: list[Tensor] = []
        for start in range(0, most, size):
            # All processes run as many forwards, as a model that is sharded itself needs.
            some = views[start : start + size] if start < order else views[:1]
            rows = {name: models.repeated(value, len(some), batch, name) for name, value in given.items()}
            output = (self._compiled or self.model)(input_ids=some.flatten(0, 1), return_dict=True, **rows)
            (parts if start < order else spare).append(output.logits)
        y = tied(parts[0] if len(parts) == 1 else torch.cat(parts), spare)
        if y.shape[-1] != self.action.size:
            raise ValueError(
                f"model: {type(self.model).__name__} scores {y.shape[-1]} words, but the action is on "
                f"{self.action.size}; wrap it again after its vocabulary has changed"
            )
        if keep is not None:
            y = y[:, -keep:] if isinstance(keep, int) else y[:, keep]
        kept = states.found(self.model, output, bool(use_cache), not self._takes.isdisjoint(caches))
        return y.unflatten(0, (order, batch)), kept

    def _merged(self, y: Tensor) -> Tensor:
        """(n, B, S, V) → (B, S, V), see the class."""
        if self.ranks is not None:
            part = self._part(y)
            part = neutral(part) if self.ranks.idle(self._count) else part
            return self._finished(self.ranks.total(part, "the views' sums")).to(y.dtype)
        if self.space != "probs":
            return orbit_mean(y, self._tables(self.action.logits), self.space)
        return log_of(orbit_mean(single(y), self._tables(self.action.logits), "probs")).to(y.dtype)

    def _part(self, y: Tensor) -> Tensor:
        """What the views of this process add to the mean, in the averaging space."""
        return mean_of_some(y, self._tables(self.action.logits), self._own(), self.space)

    def _finished(self, mean: Tensor) -> Tensor:
        """The logits from the mean in the averaging space."""
        return log_of(mean) if self.space == "probs" else mean

    def _loss(self, y: Tensor, merged: Tensor, target: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
        if self.ranks is not None:
            return models.loss(single(merged), target, self.space is None, reduction)
        return orbit_cross_entropy(y, target, self._tables(self.action.logits), self.space, reduction=reduction)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the model."""
        acts = repr(self.words) if self.words is not None else f"{self.action.name!r} of order {self.action.order}"
        return f"action={acts}, space={self.space!r}"


class REquiLM(EquiLM):
    """The relaxed EquiLM: words of E and N get the group's mean, general words the plain model's value.

    The input is transformed on E. At words of E and N the prediction is that of ``EquiLM``; at those of G, which have
    no partner, it is that of the untransformed view. Both are in the averaging space (logits, probabilities or
    log-probabilities) and put side by side before any renormalisation: ``logits`` are what that gives (their logarithm
    for ``probs``), and the loss is ``cross_entropy(logits, labels)``, which normalises. So at words of E and N the
    logits for g x are exactly those for x, permuted; at words of G they are the plain model's for g x.

    ``generate`` is as in ``EquiLM`` but for the canonical form: general words have no symmetry, so prompts are
    generated from as they are, and samples for x and g x are not each other's transforms.

    Args:
        model: a causal ``transformers`` model.
        words: the ``WordLists``.
        space, views_per_forward, mesh: as in ``EquiLM``.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> lm = REquiLM(LlamaForCausalLM(config).eval(), WordLists([[1, 2]], general=[5, 6], size=20))
        >>> x = torch.tensor([[7, 1, 9]])
        >>> torch.allclose(lm(x).logits[..., 5:7], lm.model(x).logits[..., 5:7], atol=1e-5)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        words: WordLists,
        space: Space | None = None,
        views_per_forward: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        if not isinstance(words, WordLists):
            raise TypeError(f"words: expected WordLists, got {type(words).__name__}")
        super().__init__(model, words, space, views_per_forward, mesh)
        assert self.words is not None
        self.register_buffer("_general", self.words.general_mask(), persistent=False)

    def _check_words(self) -> None:
        pass  # general words are what this is for

    def _canonical(self, ids: Tensor, mask: Any) -> frames.Frame | None:
        return None

    def _merged(self, y: Tensor) -> Tensor:
        if self.ranks is not None:
            return super()._merged(y)
        return torch.where(self._unpaired(y), self._plain(y).to(y.dtype), super()._merged(y))

    def _plain(self, y: Tensor) -> Tensor:
        return y[0] if self.space is None else single(y[0]).log_softmax(-1)

    def _unpaired(self, y: Tensor) -> Tensor:
        return cast(Tensor, self._general).to(y.device)

    def _part(self, y: Tensor) -> Tensor:
        part = super()._part(y)
        plain = self._plain(y).to(part.dtype)  # which comes from the process that has the first view
        return torch.where(self._unpaired(y), plain if self._own()[0] == 0 else torch.zeros_like(part), part)

    def _finished(self, mean: Tensor) -> Tensor:
        return torch.where(self._unpaired(mean), mean, super()._finished(mean))

    def _loss(self, y: Tensor, merged: Tensor, target: Tensor, reduction: Literal["mean", "sum"]) -> Tensor:
        return models.loss(single(merged), target, True, reduction)


def single(y: Tensor) -> Tensor:
    """float32 for half precision: logarithms of its probabilities would lose too much."""
    return y.float() if y.dtype in (torch.float16, torch.bfloat16) else y


def mean_of_some(y: Tensor, action: Action, elements: list[int], space: Space | None) -> Tensor:
    """What some views (n, …, V) add to the mean of all of an action, in the accumulator's dtype."""
    y = y.to(accumulator(y))
    if space is not None:
        y = y.softmax(-1) if space == "probs" else y.log_softmax(-1)
    return orbit_sum(y, Action(action.name, action.maps.subset(elements)), 1.0 / action.order)


def log_of(p: Tensor) -> Tensor:
    """log p of probabilities of any shape, in their dtype; finite where one underflows to zero.

    Example:
        >>> log_of(torch.tensor([1.0, 0.0])).isfinite().tolist()
        [True, True]
    """
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()
