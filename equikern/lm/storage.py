"""Saving and loading: the model's own files, and beside them the action, the word lists and the settings.

``equikern.json`` holds the class, its settings, the word lists and the group's names; ``equikern.safetensors`` the
permutations and the group's table where the action did not come from word lists. Nothing is pickled.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
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
_HINTS = {
    "dtype": "files are saved in the model's: .to(dtype) before",
    "safe_serialization": "files are safetensors, never pickles",
    "push_to_hub": "save, then huggingface_hub.upload_folder(folder_path=folder, repo_id=…)",
}
_DEFAULTS = [("safe_serialization", True), ("push_to_hub", False), ("dtype", None)]
Self = TypeVar("Self", bound="Stored")


def _of_model(name: str) -> Any:
    """An attribute that is the wrapped model's, also when it is assigned."""
    return property(lambda self: getattr(self.model, name), lambda self, value: setattr(self.model, name, value))


class Stored:
    """The wrappers' ``save_pretrained`` and ``from_pretrained``, and the configs that their files hold."""

    model: Any
    action: TokenAction
    words: WordLists | None

    config = _of_model("config")
    generation_config = _of_model("generation_config")

    def _settings(self) -> dict[str, Any]:
        """The keywords to make the wrapper with again, for JSON."""
        return {"space": cast(Any, self).space, "views_per_forward": cast(Any, self).views_per_forward}

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        overwrite: bool | None = None,
        is_main_process: bool | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        **options: Any,
    ) -> None:
        """Save the model, by its own ``save_pretrained``, and the wrapper beside it.

        Args:
            folder: made if it is not there.
            overwrite: write into a folder that is not empty. Files of the same name are replaced, as transformers does.
                By default only where ``is_main_process`` is passed, as ``Trainer`` does, whose folders are its own.
            is_main_process: False writes nothing.
            state_dict: the wrapper's own, where its parameters are not at hand, as under FSDP.
            options: the model's ``save_pretrained``'s, such as ``max_shard_size``.

        Raises:
            ValueError: a folder that is not empty, without ``overwrite``, or a file; options that the model's
                ``save_pretrained`` has not, pickles (``safe_serialization=False``), ``dtype``, ``push_to_hub=True``.
        """
        path = Path(folder)
        if path.exists() and not path.is_dir():
            raise ValueError(f"folder: expected a folder, {path} is a file")
        if overwrite is not None:
            checks.flag("overwrite", overwrite)
        options = _save_options(self.model, options)
        if is_main_process is not None:
            checks.flag("is_main_process", is_main_process)
            options["is_main_process"] = is_main_process
        if state_dict is not None:
            options["state_dict"] = {key.removeprefix("model."): value for key, value in state_dict.items()}
        if is_main_process is False:  # the model's own gathers what is spread over processes
            self.model.save_pretrained(path, **options)
            return
        if overwrite is None:
            overwrite = is_main_process is not None
        if not overwrite and path.is_dir() and any(path.iterdir()):
            raise ValueError(f"folder: {path} is not empty; expected a new or empty folder, or overwrite=True")
        path.mkdir(parents=True, exist_ok=True)
        # Should this be interrupted, what is there must not pass for a whole wrapper.
        for name in (_SETTINGS, _TENSORS):
            (path / name).unlink(missing_ok=True)
        self.model.save_pretrained(path, **options)
        tensors: dict[str, Tensor] = {}
        said: dict[str, Any] = {"format": _FORMAT, "class": type(self).__name__, "settings": self._settings()}
        said |= self._told(tensors)
        if tensors:
            save_file(tensors, path / _TENSORS)
        (path / _SETTINGS).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls: type[Self], folder: str | Path, model: Any = None, **options: Any) -> Self:
        """The wrapper that ``save_pretrained``, or a checkpoint of ``Trainer``, saved.

        Args:
            folder: where.
            model: the model, loaded already; by default ``AutoModelForCausalLM.from_pretrained(folder)`` loads it, in
                evaluation mode and the dtype it was saved in.
            options: keywords of the wrapper: ``score`` and ``tokenizer``, which cannot be saved, for the EquiZero
                wrappers, a ``mesh``; what else they name takes the place of what was saved. All else goes to
                ``AutoModelForCausalLM.from_pretrained``: ``dtype``, ``device_map``, …

        Raises:
            ValueError: no wrapper in the folder, one of another class, or one from a newer equikern; options for
                loading beside a model that is loaded.
        """
        path = Path(folder)
        if not (path / _SETTINGS).is_file():
            raise ValueError(f"folder: {path} holds no {_SETTINGS}, so no {cls.__name__} was saved there")
        said = json.loads((path / _SETTINGS).read_text(encoding="utf-8"))
        if said.get("format") != _FORMAT:
            raise ValueError(f"folder: expected format {_FORMAT} in {path / _SETTINGS}, got {said.get('format')!r}")
        if said["class"] != cls.__name__:
            raise ValueError(f"folder: {path} holds an {said['class']}, load it with {said['class']}.from_pretrained")
        _, _, action, *_ = inspect.signature(cls.__init__).parameters
        if action in options:
            raise ValueError(f"{action}: that of the folder is taken; for another one wrap the model anew")
        own = set(inspect.signature(cls.__init__).parameters)
        loading = {name: value for name, value in options.items() if name not in own}
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(path, **loading)
        elif loading:
            raise ValueError(f"{next(iter(loading))}: an option for loading the model, but model is given")
        settings = said["settings"] | {name: value for name, value in options.items() if name in own}
        tensors = load_file(path / _TENSORS) if (path / _TENSORS).is_file() else {}
        return cls(model, cls._made(said, tensors), **settings)  # type: ignore[call-arg]

    def _told(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        """What JSON says of the action; what it cannot say goes to the tensors."""
        return told(self.action, self.words, tensors)

    @classmethod
    def _made(cls, said: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
        """The action that ``_told`` told of."""
        return made(said, tensors)


def _save_options(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the model's ``save_pretrained``, which takes others without a word."""
    options = {name: value for name, value in options.items() if (name, value) not in _DEFAULTS}
    parameters = inspect.signature(model.save_pretrained).parameters.values()
    takes = {one.name for one in parameters if one.kind != one.VAR_KEYWORD} - _HINTS.keys()
    for name in options:
        if name not in takes:
            hint = _HINTS.get(name, f"{type(model).__name__}.save_pretrained does not take it")
            raise ValueError(f"{name}: {hint}")
    return options


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
