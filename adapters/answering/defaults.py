"""The models by the names that every evaluation tool knows them by, and what each is without arguments. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from flmm_plugin.backbones.registry import FAMILIES
from flmm_plugin.bundled import EMBEDDED


class Defaults(NamedTuple):
    """A name for ``--model`` and what it stands for.

    Attributes:
        name: The name itself, such as ``flmm_llava``.
        pretrained: Folder or hub id of its checkpoint; "" if it must be given.
        families: Model types (config.json) that it is for; empty: any.
    """

    name: str
    pretrained: str = ""
    families: tuple[str, ...] = ()


#: Name for any model that transformers loads to look at pictures and write text.
AUTO = Defaults("flmm_auto")

_MODELS = (
    Defaults(EMBEDDED, EMBEDDED),
    *(Defaults(family.model, family.pretrained, tuple(family.classes)) for family in FAMILIES),
    AUTO,
)

DEFAULTS: Mapping[str, Defaults] = {model.name: model for model in _MODELS}


def answers_with_masks(model: Any) -> bool:
    """Return whether a name for ``--model``, or a model object, is one of this plugin's."""
    if isinstance(model, str):
        return model.startswith("flmm_")
    return bool(getattr(model, "answers_with_masks", False))


def model_for(family: str) -> str:
    """Return the name for ``--model`` of a model type, as configurations say it.

    >>> model_for("qwen2_vl"), model_for("ovis2")
    ('flmm_qwen2_5_vl', 'flmm_auto')
    """
    return next((model.name for model in _MODELS if family in model.families), AUTO.name)
