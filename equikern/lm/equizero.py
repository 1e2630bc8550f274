"""``EquiZeroLM`` and ``REquiZeroLM``: every few words, go on with the view whose text scores best."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..actions import TokenAction
from ..core import checks
from ..nn.joined import ranks_of
from ..nn.tables import ActionTables
from ..ops import orbit, orbit_act
from . import frames, models, states
from .storage import Stored
from .words import WordLists

if TYPE_CHECKING:
    from ..distributed import Ranks
    from ..nn.joined import Mesh

__all__ = ["EquiZeroLM", "REquiZeroLM"]

_ROUNDING = 1e-4  # of the sum of a few log-probabilities in float32
Score = Callable[[list[str]], Sequence[float]]


# What a generation_config has that is about tokens, which the views see each in its own way.
_WITH_TOKENS = (
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "sequence_bias",
)


class EquiZeroLM(Stored, nn.Module):
    """Generation that keeps the best view: equizero for language (EquizeroLM, arXiv 2305.09900).

    From a context x the model goes on by ``beam_length`` tokens from every view g x; the |G| whole texts are scored,
    the best is transformed back by g⁻¹ and becomes the context, and so on. Equal scores: the larger sum of the new
    tokens' log-probabilities under the model (before temperature and cuts); then, or within 1e-4, the lowest g.

    It runs in the prompts' canonical form, as ``EquiLM.generate`` does, so that with the same seed the outputs for x
    and g x, in the same places of a batch, are Y and g Y exactly. Where g x = x there is one output Y for
    both, and g Y may differ from it.

    Args:
        model: a causal ``transformers`` model that can generate; reachable as ``.model``.
        action: ``tokens(perm)`` on its vocabulary, or ``WordLists`` without general words.
        score: from a list of texts to one number each; higher is better.
        tokenizer: decodes the texts, without special tokens.
        beam_length: m, the number of tokens from choice to choice.
        mesh: as in ``EquiTune``. Each process goes on from its own views and scores their texts; they tell one another
            the scores and the tokens. They draw what one process would draw, from the random numbers of the first.

    Raises:
        TypeError: a model, action, score or beam_length of another kind.
        ValueError: an action on another number of words, lists with general words, beam_length below 1.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2, eos_token_id=0, bos_token_id=None, pad_token_id=0)
        >>> class Numbers:  # in place of a tokenizer
        ...     def decode(self, ids, skip_special_tokens): return " ".join(map(str, ids))
        >>> def twelves(texts): return [text.split().count("12") for text in texts]
        >>> lm = EquiZeroLM(LlamaForCausalLM(config).eval(), WordLists([[1, 2]], size=20), twelves, Numbers(), 2)
        >>> x = torch.tensor([[7, 1, 9]])
        >>> y, gy = (lm.generate(t, max_new_tokens=6, do_sample=True, seed=0) for t in (x, lm.action.act(1, x)))
        >>> torch.equal(gy, lm.action.act(1, y))
        True
    """

    def __init__(
        self,
        model: nn.Module,
        action: TokenAction | WordLists,
        score: Score,
        tokenizer: Any,
        beam_length: int = 5,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__()
        models.check(model)
        self.action, self.words = models.action_of(model, action)
        self._tables = ActionTables([self.action, self.action.logits])
        self._check_words()
        if not callable(score):
            raise TypeError(f"score: expected a callable from texts to numbers, got {type(score).__name__}")
        if not hasattr(tokenizer, "decode"):
            raise TypeError(f"tokenizer: expected something with decode, got {type(tokenizer).__name__}")
        self.beam_length = checks.whole("beam_length", beam_length, 1)
        self.model, self.score, self.tokenizer = model, score, tokenizer
        self.training = model.training
        self.ranks = ranks_of(mesh, type(self).__name__, learns=False)

    def _check_words(self) -> None:
        if self.words is not None and self.words.has_general:
            raise ValueError(f"action: {self.words!r} has general words; REquiZeroLM takes them")

    def _settings(self) -> dict[str, Any]:
        return {"beam_length": self.beam_length}

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Tensor:
        """Prompts and what follows them.

        Args:
            input_ids: (B, S) prompts, padded on the left.
            attention_mask: (B, S), 0 where there is padding; None where there is none.
            max_new_tokens: at most so many, fewer where all rows end.
            do_sample, temperature, top_k, top_p: passed to the model's ``generate``; top_k 0 and top_p 1 cut nothing.
                Everything else is as in the model's ``generation_config``, without beams.
            seed: of this call alone; None draws from torch's global generator.

        Returns:
            (B, S + n) ids, rows that ended padded on the right.

        Raises:
            ValueError: ids of a wrong shape, padding on the right, tokens that the action moves where the
                generation_config names some (special, suppressed, bad or biased ones), beams or several sequences in
                it, scores that are not one number for each text, a model whose state is no ``transformers.Cache``;
                with a mesh, a model that is sharded.
        """
        ids = models.check_ids(input_ids)
        total = checks.whole("max_new_tokens", max_new_tokens, 1)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        if mask.shape != ids.shape:
            raise ValueError(f"attention_mask: expected the shape of input_ids, {tuple(ids.shape)}, got {mask.shape}")
        if bool((mask[:, -1] == 0).any()):
            raise ValueError("attention_mask: expected padding on the left, since what follows is put on the right")
        special, pad = self._special()
        ends = torch.tensor(special, dtype=torch.int64, device=ids.device)
        frame = frames.Frame(self._tables(self.action), self._tables(self.action.logits), ids, mask)
        ids, start = frame.canonical, ids.shape[1]
        options: dict[str, Any] = {"do_sample": do_sample, "pad_token_id": pad}
        if do_sample:
            options |= {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        if self.ranks is not None:
            self.ranks.check_whole(self.model)
            if do_sample and seed is None:
                self.ranks.share_generator(ids.device)
        running = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        with _seeded(seed, ids.device):
            while ids.shape[1] < start + total and bool(running.any()):
                length = min(self.beam_length, start + total - ids.shape[1])
                new = self._best(ids[running], mask[running], length, options, ends)
                block = ids.new_full((len(ids), new.shape[1]), 0 if pad is None else pad)
                block[running] = new
                real = torch.zeros_like(block, dtype=mask.dtype)
                real[running] = 1
                ids, mask = torch.cat((ids, block), 1), torch.cat((mask, real), 1)
                running = running & ~torch.isin(block, ends).any(1)
        return frame.back(ids)

    def _best(self, ids: Tensor, mask: Tensor, length: int, options: dict[str, Any], ends: Tensor) -> Tensor:
        """(b, n) new tokens for (b, S) contexts: each row's best view, transformed back."""
        order, batch = self.action.order, len(ids)
        views = orbit(ids, self._tables(self.action))
        if self.ranks is None:
            new, scores, sums = self._continued(views.flatten(0, 1), mask.repeat(order, 1), length, options, ends)
        else:
            new, scores, sums = self._shared(self.ranks, views, mask, length, options, ends)
        best = [_choice(scores[b::batch], sums[b::batch]) for b in range(batch)]
        chosen = new.unflatten(0, (order, batch))[best, range(batch)]  # type: ignore[no-untyped-call]
        return orbit_act(chosen, torch.tensor(best, device=ids.device), self._tables(self.action), inverse=True)

    def _continued(
        self, views: Tensor, rows: Tensor, length: int, options: dict[str, Any], ends: Tensor
    ) -> tuple[Tensor, list[float], list[float]]:
        """The new tokens of every row, its text's score, and the sum of their log-probabilities."""
        output = self.model.generate(
            views,
            attention_mask=rows,
            max_new_tokens=length,
            return_dict_in_generate=True,
            output_logits=True,
            **{name: value for name, value in options.items() if value is not None},
        )
        states.check(self.model, output, "set model.generation_config.use_cache = False")
        new = output.sequences[:, views.shape[1] :]
        end = torch.isin(new, ends).long()
        ended = end.cumsum(1) > end  # behind the first end
        log_p = torch.stack([step.float().log_softmax(-1) for step in output.logits], 1)
        log_p = log_p.gather(-1, new.unsqueeze(-1)).squeeze(-1).masked_fill(ended, 0.0).sum(1)
        texts = [
            self.tokenizer.decode(torch.cat((view[row != 0], more[~over])).tolist(), skip_special_tokens=True)
            for view, row, more, over in zip(views, rows, new, ended, strict=True)
        ]
        return new, _numbers(self.score(texts), len(texts)), log_p.tolist()

    def _shared(
        self, ranks: Ranks, views: Tensor, mask: Tensor, length: int, options: dict[str, Any], ends: Tensor
    ) -> tuple[Tensor, list[float], list[float]]:
        """The same of the rows of all views (|G|, b, S), of which each process goes on from its own."""
        order, batch, _ = views.shape
        first, count = ranks.start(ranks.rank, order), ranks.counts(order)[ranks.rank]
        draws = _Draws(first * batch, order * batch, self.action.size, views.device)
        # Of every row its score, the sum and the tokens, −1 where there is none: all are whole in float64.
        said = torch.full((max(count, 1), batch, 2 + length), -1.0, dtype=torch.float64, device=views.device)
        if count:
            own = views[first : first + count].flatten(0, 1)
            drawing: Any = draws if options["do_sample"] else contextlib.nullcontext()
            with drawing:
                new, scores, sums = self._continued(own, mask.repeat(count, 1), length, options, ends)
            numbers = torch.tensor([scores, sums], dtype=torch.float64, device=views.device)
            said.flatten(0, 1)[:, : 2 + new.shape[1]] = torch.cat((numbers.T, new.double()), 1)
        said = ranks.gathered(said, order, "the scores of the views' texts").flatten(0, 1)
        new = said[:, 2:].long()
        new = new[:, : int((new >= 0).any(0).sum())]
        if options["do_sample"]:
            draws.catch_up(new.shape[1])
        new = new.masked_fill(new < 0, options["pad_token_id"] or 0)
        return new, said[:, 0].tolist(), said[:, 1].tolist()

    def _special(self) -> tuple[list[int], int | None]:
        """The tokens that end a text, and the one behind them."""
        config = self.model.generation_config
        for name in _WITH_TOKENS:  # of every view alike, so of none that moves
            value = getattr(config, name, None)
            if name == "sequence_bias" and isinstance(value, list):  # of pairs of tokens and a number
                value = [tokens for tokens, _ in value]
            frames.check_special(self.action, f"generation_config.{name}", _numbers_in(value))
        for name in ("num_beams", "num_return_sequences"):
            if (getattr(config, name, None) or 1) != 1:
                raise ValueError(
                    f"generation_config.{name}: expected 1, since every few tokens one view is chosen, got "
                    f"{getattr(config, name)}"
                )
        eos = config.eos_token_id
        ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        pad = config.pad_token_id
        return ends, pad if pad is not None else ends[0] if ends else None

    def extra_repr(self) -> str:
        """What ``print(model)`` shows beside the model."""
        acts = repr(self.words) if self.words is not None else f"{self.action.name!r} of order {self.action.order}"
        return f"action={acts}, beam_length={self.beam_length}"


class REquiZeroLM(EquiZeroLM):
    """EquiZeroLM on relaxed sets: word lists with general words.

    Choosing a view moves words of E alone, so general words are never transformed, as neutral ones are not: unlike in
    ``REquiLM``, where their prediction is the plain model's, nothing else sets them apart here, and the samples for x
    and g x are each other's transforms as in ``EquiZeroLM``.

    Args:
        model, score, tokenizer, beam_length, mesh: as for ``EquiZeroLM``.
        words: the ``WordLists``.
    """

    def __init__(
        self,
        model: nn.Module,
        words: WordLists,
        score: Score,
        tokenizer: Any,
        beam_length: int = 5,
        mesh: Mesh | None = None,
    ) -> None:
        if not isinstance(words, WordLists):
            raise TypeError(f"words: expected WordLists, got {type(words).__name__}")
        super().__init__(model, words, score, tokenizer, beam_length, mesh)

    def _check_words(self) -> None:
        pass  # general words are welcome


class _Draws(TorchFunctionMode):
    """Draws for the rows of all processes, of which this one keeps its own: what one process draws for them.

    Rows are drawn alike whatever the others hold. Without a word to the others all random numbers stay in step.
    """

    def __init__(self, first: int, count: int, classes: int, device: torch.device) -> None:
        super().__init__()
        self.first, self.count, self.classes, self.device = first, count, classes, device
        self.done = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.multinomial:
            return func(*args, **(kwargs or {}))
        p, *rest = args
        self.done += 1
        own = slice(self.first, self.first + len(p))
        every = torch.ones(self.count, p.shape[1], dtype=p.dtype, device=p.device)
        every[own] = p
        return torch.multinomial(every, *rest, **(kwargs or {}))[own]

    def catch_up(self, steps: int) -> None:
        """Draw for the steps that other processes' rows have gone on for."""
        for _ in range(steps - self.done):
            torch.multinomial(torch.ones(self.count, self.classes, device=self.device), 1)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _choice(scores: list[float], sums: list[float]) -> int:
    """The best score; of equal ones the likelier text, and the first of those that differ by rounding alone."""
    best = [g for g, score in enumerate(scores) if score == max(scores)]
    likely = max(sums[g] for g in best)
    return next(g for g in best if sums[g] >= likely - _ROUNDING)


def _numbers(scores: Any, count: int) -> list[float]:
    numbers = [float(value) for value in scores]
    if len(numbers) != count:
        raise ValueError(f"score: expected {count} numbers, one for each text, got {len(numbers)}")
    for i, value in enumerate(numbers):
        if math.isnan(value):
            raise ValueError(f"score: expected numbers that compare, got nan for text {i}")
    return numbers


def _numbers_in(value: Any) -> list[int]:
    """The tokens that an option is about, however they are nested."""
    if isinstance(value, int):
        return [value]
    if isinstance(value, Tensor):
        return [int(v) for v in value.flatten().tolist()]
    if isinstance(value, dict):
        value = list(value)
    return [v for part in value for v in _numbers_in(part)] if isinstance(value, (list, tuple)) else []
