"""Fair language models: wrappers for causal models of ``transformers`` (the extra ``lm``)."""

from .equilm import EquiLM, REquiLM
from .equizero import EquiZeroLM, REquiZeroLM
from .product import ProductEquiLM
from .words import WordLists

__all__ = ["EquiLM", "EquiZeroLM", "ProductEquiLM", "REquiLM", "REquiZeroLM", "WordLists"]
