"""The numbers of a model that heads must fit, from its configuration alone: no weights are read."""

from __future__ import annotations

from os import PathLike, fspath
from typing import Any

from flmm_plugin.backbones import family_class, family_of
from flmm_plugin.errors import BackboneUnsupported
from flmm_plugin.heads.manifest import BackboneFacts


def facts_of(pretrained: str | PathLike[str], *, revision: str | None = None) -> BackboneFacts:
    """Layers, heads, hidden size and views of a checkpoint.

    Args:
        pretrained: A folder or a hub name.
        revision: Branch, tag or commit on the hub.

    Raises:
        BackboneUnsupported: No configuration, of no known family, or without these numbers.
        UnknownArgument: Not a name of anything.
    """
    name = fspath(pretrained)
    family = family_of(name, revision=revision)
    maps = family_class(family, name).maps_per_image
    text = _text_config(name, revision)
    numbers = {key: getattr(text, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")}
    missing = [key for key, value in numbers.items() if not isinstance(value, int)]
    if missing or not isinstance(maps, int):
        raise BackboneUnsupported(
            f"the configuration of {name!r} does not say {', '.join(missing) or 'how many views it has'}; give the "
            "model by a name that the paper lists (flmm heads convert --help)"
        )
    layers, heads, hidden = (int(value) for value in numbers.values() if value is not None)
    return BackboneFacts(name, layers, heads, hidden, maps, revision)


def _text_config(name: str, revision: str | None) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    try:
        return AutoConfig.from_pretrained(name, revision=revision).get_text_config()
    except (OSError, ValueError, KeyError):
        # Families that transformers' own table of configurations lacks: the file as it is.
        content, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        return PreTrainedConfig.from_dict(content)
