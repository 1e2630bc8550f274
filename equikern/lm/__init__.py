"""Fair language models: wrappers for causal models of ``transformers`` (the extra ``lm``)."""

from .words import WordLists

__all__ = ["WordLists"]
