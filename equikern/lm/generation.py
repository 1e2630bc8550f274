"""transformers' ``generate`` on the averaged model: in canonical form, with a cache of every view's rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from ..actions import TokenAction
from ..nn.tables import ActionTables
from . import frames, models
from .pretrained import Pretrained
from .states import NAMES, reordered

if TYPE_CHECKING:
    from ..distributed import Ranks

# What transformers' generate takes and this one cannot honour; each with what to do instead.
REFUSED = {
    "inputs_embeds": "the group acts on token ids: pass input_ids",
    "assistant_model": "assisted generation drafts with a model that is not equivariant",
    "prompt_lookup_num_tokens": "assisted generation is not supported",
    "assistant_early_exit": "assisted generation is not supported",
    "penalty_alpha": "contrastive search reads the hidden states, which the views' mean does not have",
    "dola_layers": "it reads the hidden states of layers, which the views' mean does not have",
    "custom_generate": "only transformers' own decoding is supported",
    "negative_prompt_ids": "guidance by a negative prompt is not supported",
    "negative_prompt_attention_mask": "guidance by a negative prompt is not supported",
    "guidance_scale": "guidance by a negative prompt is not supported",
    "token_healing": "it replaces the prompt's last token; heal the prompt before",
    "output_attentions": "the views have attentions, their mean has none: ask .model",
    "output_hidden_states": "the views have hidden states, their mean has none: ask .model",
}


M = TypeVar("M", bound=nn.Module)
_THEIRS: Any = GenerationMixin  # whose annotations of self ask for more than a module that is wrapped


class Generates(Pretrained, GenerationMixin):
    """What ``EquiLM`` says of ``generate``, and what transformers' generate calls."""

    action: TokenAction
    _tables: ActionTables
    _count: int  # views of a sentence
    ranks: Ranks | None  # the processes that share the views
    _takes: set[str]  # what the model's forward takes
    _is_stateful = False
    # Of one call of generate, on a shallow copy made for it: calls from several threads share the model and no more.
    _frame: frames.Frame | None = None
    _crossed: frozenset[str] = frozenset()
    _compiled: Callable[..., Any] | None = None  # the model's forward in one call of generate, where it is compiled

    def _canonical(self, ids: Tensor, mask: Any) -> frames.Frame | None:
        """What makes prompts canonical and their answers the user's again; None where there is nothing canonical."""
        return frames.Frame(self._tables(self.action), self._tables(self.action.logits), ids, mask)

    def _own(self) -> list[int]:
        """The views that this process runs, one after another; the first one if there is none for it."""
        return list(range(self._count)) if self.ranks is None else self.ranks.views(self._count)

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
            As transformers, in the user's ids. With ``return_dict_in_generate`` there is no cache: it is that of the
            canonical prompts.

        Raises:
            ValueError: special tokens (eos, pad, bos) that the action moves; a cache; a model whose state cannot be
                kept for every view, without ``use_cache=False``, or reordered for beams; and, each with its reason,
                inputs_embeds, assisted generation, custom_generate, guidance, token_healing, attentions and hidden
                states.
        """
        for name in [*options]:
            if name in REFUSED:
                refuse(name, options[name])
                options.pop(name)
        for name in NAMES:
            if options.pop(name, None) is not None:
                raise ValueError(
                    f"{name}: a cache belongs to the views of one canonical prompt, so generate makes its own; "
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
        if self.ranks is not None and self._samples(generation_config, options.get("do_sample")):
            self.ranks.share_generator(next(self.model.parameters()).device)
        call = _twin(self)
        call._frame = frame
        if frame is None:
            return _THEIRS.generate(call, inputs, *given, streamer=streamer, **options)
        through = None if streamer is None else frames.UserStreamer(streamer, frame)
        result = _THEIRS.generate(call, frame.canonical, *given, streamer=through, **options)
        if call._crossed != {"processors", "criteria"}:
            raise RuntimeError("this release of transformers prepares processors and criteria in another way")
        return _mapped_back(result, frame)

    def _samples(self, generation_config: Any, asked: object) -> bool:
        """Whether ``generate`` may draw: as the call says, otherwise if its configuration or the model's says so."""
        configurations = (generation_config, self.model.generation_config)
        return bool(any(c is not None and c.do_sample for c in configurations) if asked is None else asked)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """The model's own, for B rows; ``forward`` makes the views."""
        prepared = dict(self.model.prepare_inputs_for_generation(input_ids, **kwargs))
        # what models find out themselves (older releases), and what generate needed for stop strings
        for name in ("cache_position", "tokenizer"):
            prepared.pop(name, None)
        state = any(prepared.get(name) is not None for name in NAMES)
        if not state and prepared["input_ids"].shape[-1] < input_ids.shape[-1]:
            raise ValueError(
                f"use_cache: {type(self.model).__name__} is shown the last word alone, but has kept nothing of those "
                "before it; pass use_cache=False"
            )
        return {name: value for name, value in prepared.items() if name != "position_ids" or name in self._takes}

    def get_compiled_call(self, compile_config: Any) -> Callable[..., Any]:
        """This, through the model's own compiled call. The views and their mean stay outside."""
        call = _twin(self)
        call._compiled = self.model.get_compiled_call(compile_config)
        return call

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> Any:
        """The model's: which cache, and under which name, follows from its class. For all views of this process."""
        # On a copy: the length of a static one would stay on the model.
        model = _twin(self.model)
        prepare = getattr(model, "_prepare_cache_for_generation", None)
        if prepare is None:
            prepare = functools.partial(_THEIRS._prepare_cache_for_generation, self)
        rows = batch_size * len(self._own())
        return prepare(generation_config, model_kwargs, generation_mode, rows, max_cache_length)

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> Any:
        """The model's, where they are rows: those of pictures have another first dim."""
        prepare = getattr(self.model, "_prepare_position_ids_for_generation", None)
        position = None if prepare is None else prepare(inputs_tensor, model_kwargs)
        if prepare is not None and (position is None or position.dim() == 2):
            return position
        return _THEIRS._prepare_position_ids_for_generation(self, inputs_tensor, model_kwargs)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """By what the model takes."""
        if hasattr(self.model, "_validate_model_kwargs"):
            self.model._validate_model_kwargs(model_kwargs)
        else:
            _THEIRS._validate_model_kwargs(self, model_kwargs)

    def _reorder_cache(self, past_key_values: Any, beam_idx: Tensor) -> Any:
        """Beams of every view: rows g·B + beam_idx, B the number of beams."""
        rows = len(beam_idx) * torch.arange(len(self._own()), device=beam_idx.device).unsqueeze(1)
        return reordered(self.model, past_key_values, (rows + beam_idx).flatten())

    def _get_logits_processor(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        for name in ("eos_token_id", "pad_token_id", "bos_token_id", "forced_bos_token_id", "forced_eos_token_id"):
            frames.check_special(self.action, name, getattr(generation_config, name, None))
        for name in REFUSED:
            refuse(name, getattr(generation_config, name, None))
        made = _THEIRS._get_logits_processor(self, generation_config, *args, **kwargs)
        self._crossed |= {"processors"}
        frame = self._frame
        return made if frame is None else type(made)([frames.processor(item, frame) for item in made])

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> Any:
        made = _THEIRS._get_stopping_criteria(self, *args, **kwargs)
        self._crossed |= {"criteria"}
        frame = self._frame
        return made if frame is None else type(made)([frames.stops(item, frame) for item in made])


def _twin(module: M) -> M:
    """A shallow copy of a module. ``copy.copy`` fails for what ``fully_shard`` has sharded."""
    made = object.__new__(type(module))
    vars(made).update(vars(module))
    return made


def refuse(name: str, value: Any) -> None:
    """An error where something of ``REFUSED`` is asked for."""
    if name == "guidance_scale" and value == 1:
        return
    if value is not None and value is not False:
        raise ValueError(f"{name}: {REFUSED[name]}")


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
