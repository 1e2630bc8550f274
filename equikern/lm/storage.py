"""Saving and loading: the model's own files, and beside them the action, the word lists and the settings.

``equikern.json`` holds the class, its settings, the word lists and the group's names; ``equikern.safetensors`` the
permutations and the group's table where the action did not come from word lists. Nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from ..actions import TokenAction, tokens
from ..core import checks
from ..groups import Group
from .words import WordLists

__all__ = ["Stored"]

_SETTINGS, _TENSORS = "equikern.json", "equikern.safetensors"
_FORMAT = 1
Self = TypeVar("Self", bound="Stored")


class Stored:
    """The wrappers' ``save_pretrained`` and ``from_pretrained``."""

    model: Any
    action: TokenAction
    words: WordLists | None

    def _settings(self) -> dict[str, Any]:
        """The keywords to make the wrapper with again, for JSON."""
        return {"space": cast(Any, self).space, "views_per_forward": cast(Any, self).views_per_forward}

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Save the model, by its own ``save_pretrained``, and the wrapper beside it.

        Args:
            folder: made if it is not there.
            overwrite: write into a folder that is not empty. Files of the same name are replaced, as transformers does.

        Raises:
            ValueError: a folder that is not empty, without ``overwrite``, or a file.
        """
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise ValueError(f"folder: expected a folder, {path} is a file")
        checks.flag("overwrite", overwrite)
        if not overwrite and path.is_dir() and any(path.iterdir()):
            raise ValueError(f"folder: {path} is not empty; expected a new or empty folder, or overwrite=True")
        path.mkdir(parents=True, exist_ok=True)
        # Should this be interrupted, what is there must not pass for a whole wrapper.
        for name in (_SETTINGS, _TENSORS):
            (path / name).unlink(missing_ok=True)
        self.model.save_pretrained(path)
        tensors: dict[str, Tensor] = {}
        said: dict[str, Any] = {"format": _FORMAT, "class": type(self).__name__, "settings": self._settings()}
        said |= self._told(tensors)
        if tensors:
            save_file(tensors, path / _TENSORS)
        (path / _SETTINGS).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls: type[Self], folder: str | Path, model: Any = None, **needed: Any) -> Self:
        """The wrapper that ``save_pretrained`` saved.

        Args:
            folder: where.
            model: the model, loaded already; by default ``AutoModelForCausalLM.from_pretrained(folder)`` loads it, in
                evaluation mode and the dtype it was saved in.
            needed: what cannot be saved: ``score`` and ``tokenizer`` for the EquiZero wrappers; a ``mesh`` for others.

        Raises:
            ValueError: no wrapper in the folder, one of another class, or one from a newer equikern.
        """
        path = Path(folder)
        if not (path / _SETTINGS).is_file():
            raise ValueError(f"folder: {path} holds no {_SETTINGS}, so no {cls.__name__} was saved there")
        said = json.loads((path / _SETTINGS).read_text(encoding="utf-8"))
        if said.get("format") != _FORMAT:
            raise ValueError(f"folder: expected format {_FORMAT} in {path / _SETTINGS}, got {said.get('format')!r}")
        if said["class"] != cls.__name__:
            raise ValueError(f"folder: {path} holds an {said['class']}, load it with {said['class']}.from_pretrained")
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(path)
        tensors = load_file(path / _TENSORS) if (path / _TENSORS).is_file() else {}
        return cls(model, cls._made(said, tensors), **said["settings"], **needed)  # type: ignore[call-arg]

    def _told(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """What JSON says of the action; what it cannot say goes to the tensors."""
        return told(self.action, self.words, tensors)

    @classmethod
    def _made(cls, said: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
        """The action that ``_told`` told of."""
        return made(said, tensors)


def told(action: TokenAction, words: WordLists | None, tensors: dict[str, Tensor], suffix: str = "") -> dict[str, Any]:
    """One action as JSON and tensors."""
    if words is not None:
        return {"words": words.to_dict()}
    group = action.group
    tensors |= {f"perm{suffix}": action.perm.int(), f"multiply{suffix}": group.multiply.int()}
    return {"action": {"name": action.name, "group": group.name, "elements": list(group.names)}}


def made(said: dict[str, Any], tensors: dict[str, Tensor], suffix: str = "") -> TokenAction | WordLists:
    """The action that ``told`` told of."""
    if "words" in said:
        return WordLists.from_dict(said["words"])
    names = said["action"]
    group = Group(tensors[f"multiply{suffix}"].to(torch.int64), names["elements"], names["group"])
    action = tokens(tensors[f"perm{suffix}"], group=group)
    action.name = action.logits.name = names["name"]
    return action
