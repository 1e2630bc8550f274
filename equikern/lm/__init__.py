"""Fair language models: wrappers for causal models of ``transformers`` (the extra ``lm``)."""

from .equilm import EquiLM, REquiLM
from .words import WordLists

__all__ = ["EquiLM", "REquiLM", "WordLists"]
