"""``EquiLM`` and ``REquiLM``: a causal language model averaged over a group that exchanges words."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..actions import Action, PermutationAction, TokenAction
from ..core import checks
from ..nn.joined import neutral, ranks_of, tied
from ..nn.tables import ActionTables
from ..nn.views import check_views
from ..ops import orbit, orbit_cross_entropy, orbit_mean
from ..ops.checked import orbit_sum
from ..views import accumulator
from . import frames, models
from .storage import Stored
from .words import WordLists

if TYPE_CHECKING:
    from ..nn.joined import Mesh

__all__ = ["EquiLM", "REquiLM"]

Space = Literal["probs", "log_probs"]

# What transformers' generate takes and this one cannot honour; each with what to do instead.
_REFUSED = {
    "inputs_embeds": "the group acts on token ids: pass input_ids",
    "assistant_model": "assisted generation drafts with a model that is not equivariant",
    "prompt_lookup_num_tokens": "assisted generation is not supported",
    "custom_generate": "only transformers' own decoding is supported",
    "negative_prompt_ids": "guidance by a negative prompt is not supported",
    "negative_prompt_attention_mask": "guidance by a negative prompt is not supported",
    "guidance_scale": "guidance by a negative prompt is not supported",
    "token_healing": "it replaces the prompt's last token; heal the prompt before",
    "output_attentions": "the views have attentions, their mean has none: ask .model",
    "output_hidden_states": "the views have hidden states, their mean has none: ask .model",
}


class EquiLM(Stored, GenerationMixin, nn.Module):
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

    _is_stateful = False
    # Of one call of generate, on a shallow copy made for it: calls from several threads share the model and no more.
    _frame: frames.Frame | None = None
    _crossed: frozenset[str] = frozenset()

    def __init__(
        self,
        model: nn.Module,
        action: TokenAction | WordLists,
        space: Space | None = None,
        views_per_forward: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        nn.Module.__init__(self)
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
        self._takes = set(inspect.signature(model.forward).parameters)
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
    ) -> Any:
        """The averaged prediction for a batch of sentences.

        Args:
            input_ids: (B, S) int64.
            attention_mask: (B, S), 0 where there is padding, or what the model takes, with B first.
            position_ids: (B, S) or (1, S).
            past_key_values: the cache of an earlier forward, with |G|·B rows, or B for each view of this process.
            labels: (B, S) int64, the words to predict, −100 where none; shifted by one here, as in transformers.
            use_cache, logits_to_keep: passed to the model. Labels need all logits.
            inputs_embeds, output_attentions, output_hidden_states: refused.
            return_dict: False for a tuple without the parts that are None.

        Returns:
            ``CausalLMOutputWithPast``: ``loss`` (None without labels), ``logits`` (B, S, V), ``past_key_values``.

        Raises:
            ValueError: no input_ids or ones outside 0 … V − 1, labels that do not fit or with logits_to_keep.
        """
        self._refuse("inputs_embeds", inputs_embeds)
        self._refuse("output_attentions", output_attentions)
        self._refuse("output_hidden_states", output_hidden_states)
        ids = models.check_ids(input_ids)
        keep = logits_to_keep if isinstance(logits_to_keep, Tensor) or logits_to_keep != 0 else None
        if labels is not None:
            if keep is not None:
                raise ValueError("labels: the loss needs all logits, so expected no logits_to_keep beside them")
            models.check_labels(labels, ids)
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "logits_to_keep": keep}
        y, cache = self._views(ids, inputs, past_key_values, use_cache)
        merged = self._merged(y)
        loss = None if labels is None else self._loss(y, merged, models.shifted(labels))
        output = CausalLMOutputWithPast(loss=loss, logits=merged, past_key_values=cache)
        return output if return_dict is None or return_dict else output.to_tuple()

    def generate(  # type: ignore[override]  # the rest of transformers' parameters are options
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]] | None = None,
        streamer: Any = None,
        **options: Any,
    ) -> Any:
        """transformers' ``generate`` on the averaged model, in the prompts' canonical form; see the class.

        Args:
            inputs: (B, S) prompts, also as ``input_ids``.
            generation_config, logits_processor, stopping_criteria, prefix_allowed_tokens_fn, streamer: as there; they
                are shown the ids as the user knows them.
            options: ``attention_mask`` and any option of ``transformers.GenerationConfig``; transformers refuses
                unknown ones.

        Returns:
            As transformers, in the user's ids. With ``return_dict_in_generate`` there are no ``past_key_values``: the
            cache is that of the canonical prompts.

        Raises:
            ValueError: special tokens (eos, pad, bos) that the action moves; a cache; and, each with its reason,
                inputs_embeds, assisted generation, custom_generate, guidance, token_healing, attentions and hidden
                states.
        """
        for name in [*options]:
            if name in _REFUSED:
                self._refuse(name, options[name])
                options.pop(name)
        if options.pop("past_key_values", None) is not None:
            raise ValueError(
                "past_key_values: a cache belongs to the views of one canonical prompt, so generate makes its own; "
                "pass the whole prompt"
            )
        if options.get("input_ids") is not None:
            if inputs is not None:
                raise ValueError("inputs: expected the prompts once, got them as input_ids too")
            inputs = options["input_ids"]
        options.pop("input_ids", None)
        given = (generation_config, logits_processor, stopping_criteria, prefix_allowed_tokens_fn)
        frame = None
        if inputs is not None:
            inputs = models.check_ids(inputs)
            frame = self._canonical(inputs, options.get("attention_mask"))
        if self.ranks is not None:
            self.ranks.share_generator(next(self.model.parameters()).device)
        if frame is None:
            return GenerationMixin.generate(self, inputs, *given, streamer=streamer, **options)
        call = copy.copy(self)
        call._frame = frame
        through = None if streamer is None else frames.UserStreamer(streamer, frame)
        result = GenerationMixin.generate(call, frame.canonical, *given, streamer=through, **options)
        if call._crossed != {"processors", "criteria"}:
            raise RuntimeError("this release of transformers prepares processors and criteria in another way")
        return _mapped_back(result, frame)

    def _canonical(self, ids: Tensor, mask: Any) -> frames.Frame | None:
        return frames.Frame(self._tables(self.action), self._tables(self.action.logits), ids, mask)

    # What transformers' generate calls.

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """The model's own, for B rows; ``forward`` makes the views."""
        prepared = dict(cast(Any, self.model).prepare_inputs_for_generation(input_ids, **kwargs))
        # what models find out themselves (older releases), and what generate needed for stop strings
        for name in ("cache_position", "tokenizer"):
            prepared.pop(name, None)
        return {name: value for name, value in prepared.items() if name != "position_ids" or name in self._takes}

    def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
        """Uncompiled: the model's own compiled call would leave out the views."""
        return self.__call__

    def _reorder_cache(self, past_key_values: Any, beam_idx: Tensor) -> Any:
        """Beams of every view: rows g·B + beam_idx, B the number of beams."""
        rows = len(beam_idx) * torch.arange(len(self._own()), device=beam_idx.device).unsqueeze(1)
        index = (rows + beam_idx).flatten()
        own = getattr(self.model, "_reorder_cache", None)
        if own is not None:
            return own(past_key_values, index)
        past_key_values.reorder_cache(index)
        return past_key_values

    def _get_logits_processor(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        for name in ("eos_token_id", "pad_token_id", "bos_token_id", "forced_bos_token_id", "forced_eos_token_id"):
            frames.check_special(self.action, name, getattr(generation_config, name, None))
        for name in _REFUSED:
            self._refuse(name, getattr(generation_config, name, None))
        made = GenerationMixin._get_logits_processor(self, generation_config, *args, **kwargs)
        self._crossed |= {"processors"}
        frame = self._frame
        return made if frame is None else type(made)([frames.processor(item, frame) for item in made])

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        made = GenerationMixin._get_stopping_criteria(self, *args, **kwargs)
        self._crossed |= {"criteria"}
        frame = self._frame
        return made if frame is None else type(made)([frames.stops(item, frame) for item in made])

    def __getattr__(self, name: str) -> Any:
        """What transformers asks of a model and is not here, such as its device, is the model's own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or "model" not in self.__dict__.get("_modules", {}):
                raise
        return getattr(self.model, name)

    # The parts.

    def _refuse(self, name: str, value: Any) -> None:
        if name == "guidance_scale" and value == 1:
            return
        if value is not None and value is not False:
            raise ValueError(f"{name}: {_REFUSED[name]}")

    def _orbit(self, ids: Tensor) -> Tensor:
        """The sentences that the model sees, (views, B, S)."""
        return orbit(ids, self._tables(self.action))

    def _own(self) -> list[int]:
        """The views that this process runs, one after another; the first one if there is none for it."""
        views = list(range(self._count))
        return views if self.ranks is None else self.ranks.own(self.ranks.cut([views]))[0][-1]

    def _views(self, ids: Tensor, inputs: dict[str, Any], cache: Any, use_cache: bool | None) -> tuple[Tensor, Any]:
        """The logits (n, B, S, V) of every view that this process runs, and the cache of n·B rows."""
        own, batch = self._own(), ids.shape[0]
        views = self._orbit(ids)
        most = order = len(own)
        if self.ranks is not None:
            self.ranks.listen(self.model)
            views, most = views[own[0] : own[-1] + 1], max(self.ranks.counts(self._count))
        size = self.views_per_forward or most
        if cache is not None or use_cache or size >= most:
            size = most
        elif use_cache is None:
            use_cache = False
        given = {name: value for name, value in inputs.items() if value is not None}
        keep = None if "logits_to_keep" in self._takes else given.pop("logits_to_keep", None)
        unknown = [name for name in given if name not in self._takes and "kwargs" not in self._takes]
        if unknown:
            raise ValueError(f"{unknown[0]}: {type(self.model).__name__} does not take it")
        if cache is not None:
            given["past_key_values"] = cache
        if use_cache is not None:
            given["use_cache"] = use_cache
        parts: list[Tensor] = []
        spare: list[Tensor] = []
        for start in range(0, most, size):
            # All processes run as many forwards, as a model that is sharded itself needs.
            some = views[start : start + size] if start < order else views[:1]
            rows = {name: models.repeated(value, len(some), batch, name) for name, value in given.items()}
            output = self.model(input_ids=some.flatten(0, 1), return_dict=True, **rows)
            (parts if start < order else spare).append(output.logits)
        y = tied(parts[0] if len(parts) == 1 else torch.cat(parts), spare)
        if keep is not None:
            y = y[:, -keep:] if isinstance(keep, int) else y[:, keep]
        return y.unflatten(0, (order, batch)), getattr(output, "past_key_values", None)

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

    def _loss(self, y: Tensor, merged: Tensor, target: Tensor) -> Tensor:
        if self.ranks is not None:
            return models.loss(single(merged), target, self.space is None)
        return orbit_cross_entropy(y, target, self._tables(self.action.logits), self.space)

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

    def _loss(self, y: Tensor, merged: Tensor, target: Tensor) -> Tensor:
        return models.loss(single(merged), target, True)


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


def _mapped_back(result: Any, frame: frames.Frame) -> Any:
    """What ``generate`` returns, in the user's ids."""
    if isinstance(result, Tensor):
        return frame.back(result)
    result.sequences = frame.back(result.sequences)
    for name in ("scores", "logits"):
        steps = getattr(result, name, None)
        if steps is not None:
            setattr(result, name, tuple(frame.scores_back(step) for step in steps))
    result.past_key_values = None
    return result
