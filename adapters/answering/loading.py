"""From model arguments, as a command line gives them, to a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flmm_plugin.adapters.answering.arguments import as_switch, none_if_said, refuse_unknown
from flmm_plugin.adapters.answering.defaults import model_for
from flmm_plugin.adapters.answering.visual_cot import VisualCotMode
from flmm_plugin.errors import UnknownArgument

_SWITCHES = ("load_in_4bit", "load_in_8bit", "trust_remote_code")


@dataclass(frozen=True)
class Settings:
    """Model arguments, read.

    Attributes:
        heads: What to ground with, None for chat alone.
        visual_cot: Which questions get a second look.
        rest: For `GroundedLMM.from_pretrained`, all but the checkpoint, the heads and the device.
    """

    heads: str | None
    visual_cot: VisualCotMode
    rest: dict[str, Any]

    @classmethod
    def read(cls, options: Mapping[str, Any], *, heads: str | None, default_heads: str | None, model: str) -> Settings:
        """Of arguments by name.

        Args:
            options: Without checkpoint, heads, device and batch size.
            heads: As given; "" if they were not.
            default_heads: Those that belong to the model, None if there are none.
            model: Who refuses, in a message.

        Raises:
            UnknownArgument: A name or a value that does not exist.
        """
        refuse_unknown(options, model)
        rest = {name: none_if_said(value) for name, value in options.items() if name != "max_batch_size"}
        rest = {name: value for name, value in rest.items() if value is not None}
        visual_cot = VisualCotMode.taken_from(rest)
        chosen = default_heads if heads == "" else none_if_said(heads)
        if visual_cot.always and chosen is None:
            raise UnknownArgument("visual_cot needs heads to find what to look at; give --model_args heads=<file>")
        for name in _SWITCHES:
            if name in rest:
                rest[name] = as_switch(name, rest[name])
        if "sam" in options:
            rest["sam"] = str(options["sam"])  # where `none` is a choice, not an absence
        return cls(chosen, visual_cot, rest)


def load_lmm(pretrained: str, *, heads: str | None, families: Sequence[str], model: str, **settings: Any) -> Any:
    """The `GroundedLMM` that answers. Torch models are imported here: naming a model must not cost them.

    Args:
        pretrained: Folder or hub id.
        heads: File, ``auto``, or None for chat alone.
        families: Model types (config.json) that the named model is for; empty: any.
        model: Who refuses another one, in a message.
        **settings: Further arguments of `GroundedLMM.from_pretrained`.

    Raises:
        UnknownArgument: The checkpoint is of another family.
    """
    from flmm_plugin.backbones import family_of
    from flmm_plugin.grounded_lmm import GroundedLMM

    if families:
        family = family_of(pretrained, revision=settings.get("revision"))
        if family not in families:
            raise UnknownArgument(
                f"{model} is for {' and '.join(families)} models, {pretrained} is a {family!r} "
                f"model: use --model {model_for(family)}"
            )
    return GroundedLMM.from_pretrained(pretrained, heads=heads, **settings)
