"""What makes a wrapper a model of ``transformers``: all but its prediction is the wrapped model's own, or refused.

``Trainer`` and others ask ``isinstance(model, PreTrainedModel)`` and save accordingly, so the wrappers are that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel

# What would leave the wrapper half changed; each with what to do instead.
_REFUSED = {
    "resize_token_embeddings": "the action is on the words there are: resize the model, then wrap it again",
    "push_to_hub": "save_pretrained(folder), then huggingface_hub.upload_folder(folder_path=folder, repo_id=…)",
    "generate_batch": "continuous batching packs sentences of all lengths into one row, which has no views; generate "
    "takes a padded batch",
    "init_continuous_batching": "continuous batching is not supported: generate takes a padded batch",
    "_from_config": "make the model, then wrap it",
    "register_for_auto_class": "transformers would look for the wrapper's code in the folder; import equikern.lm",
    "continuous_batching_context_manager": "continuous batching is not supported: generate takes a padded batch",
}
_MISSING = object()


class Pretrained(PreTrainedModel):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """The wrappers' side of ``PreTrainedModel``.

    Embeddings, adapters, gradient checkpointing, devices and the like are those of ``model``: whatever
    ``PreTrainedModel`` has, this looks up there. State dicts have the prefix ``model.``; those of the plain model,
    without it, are taken too.
    """

    model: Any
    # What Trainer asks: that forward takes num_items_in_batch, and that the loss is one of shifted labels.
    accepts_loss_kwargs = True
    loss_type = "ForCausalLM"

    def __init__(self) -> None:
        nn.Module.__init__(self)  # PreTrainedModel's would make a config and hooks of its own

    def __init_subclass__(cls) -> None:
        """Nothing: ``PreTrainedModel``'s looks for the class's config, and a wrapper has its model's."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Also that of the plain model, as the files of ``save_pretrained`` hold it: no prefix, tied weights once."""
        own = self.model.state_dict()
        if not any(key in own for key in state_dict) or any(f"model.{key}" in state_dict for key in own):
            return super().load_state_dict(state_dict, strict, assign)
        whole = dict(state_dict)
        for names in _tied(self.model):
            given = [name for name in names if name in whole]
            whole |= {name: whole[given[0]] for name in names if given and name not in whole}
        return self.model.load_state_dict(whole, strict, assign)

    def _get_name(self) -> str:
        """The model's: Trainer's label smoothing asks by it whether labels are to be shifted."""
        return type(self.model).__name__

    def __repr__(self) -> str:
        return super().__repr__().replace(self._get_name(), type(self).__name__, 1)

    def __getattr__(self, name: str) -> Any:
        """What transformers asks of a model and is not here is the model's own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or "model" not in self.__dict__.get("_modules", {}):
                raise
        return getattr(self.model, name)


class _Own:
    """An attribute that is the wrapped model's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: Pretrained | None, kind: type | None = None) -> Any:
        if wrapper is None:
            return getattr(PreTrainedModel, self.name)
        found = getattr(wrapper.model, self.name, _MISSING)
        # A module that only looks like a model of transformers lacks some.
        return getattr(super(Pretrained, wrapper), self.name) if found is _MISSING else found


class _OwnLoss(_Own):
    """The same, but not to be assigned: the wrapper's loss is that of the averaged prediction."""

    def __set__(self, wrapper: Pretrained, value: object) -> NoReturn:
        raise ValueError(
            f"loss_function: not for {type(wrapper).__name__}, whose loss is that of the averaged prediction; compute "
            "another one of its logits"
        )


def _refusal(name: str, why: str) -> Any:
    def refused(kind: type, /, *args: object, **kwargs: object) -> NoReturn:
        raise ValueError(f"{name}: not for {kind.__name__}: {why}")

    # Bound to the class, too: what is asked of it must not go to PreTrainedModel.
    return classmethod(refused)


for _name in {*dir(PreTrainedModel)} - {*dir(nn.Module)} - {*dir(GenerationMixin)}:
    setattr(Pretrained, _name, _Own(_name))
for _name, _why in _REFUSED.items():
    setattr(Pretrained, _name, _refusal(_name, _why))
setattr(Pretrained, "loss_function", _OwnLoss("loss_function"))  # noqa: B010  (it has another type there)


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of every parameter that has several."""
    names: dict[int, list[str]] = {}
    parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in parameters.items():
        names.setdefault(id(parameter), []).append(name)
    return [some for some in names.values() if len(some) > 1]
