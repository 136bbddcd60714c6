"""Arguments of a model, as a command line gives them: which there are, what they mean, and the LMM that they load."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flmm_plugin.adapters.answering.defaults import Defaults, model_for
from flmm_plugin.bundled import is_model
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.options import LoadOptions, as_switch, none_if_said, refuse_unknown

if TYPE_CHECKING:
    from flmm_plugin.adapters.answering.visual_cot import VisualCotMode
    from flmm_plugin.grounded_lmm import GroundedLMM

#: Where an evaluation tool without arguments for models takes them from: ``name=value,name=value``.
ARGUMENTS_VARIABLE = "FLMM_MODEL_ARGS"

#: Name -> meaning, as shown for an unknown one.
MODEL_ARGUMENTS = {
    "pretrained": "folder or hub id of the LMM",
    **LoadOptions.help_texts(),
    "batch_size": "requests per forward pass",
    "max_batch_size": "accepted because lmms-eval passes it on; not used",
    "heads": "auto: those that belong to the LMM, fetched once; a file, owner/name on the hub, none, or without "
    "training: attention-argmax, attend-and-segment, localization-heads",
    "fetch": "false: nothing is fetched; what is missing is listed",
    "sam": "`none`: masks of the mask decoder alone; else the name of the SAM that the heads were trained with",
    "sam_checkpoint": "SAM file or size for heads that were saved without an image encoder, and for those without "
    "training; default: Meta's own, fetched once",
    "visual_cot": "v1 or v2: answer every question about one picture after a second look at what it is about",
    "visual_cot_views": "what that answer is given from: auto, both (whole picture and cut-out) or crop",
    "visual_cot_refine": "true: the mask refiner says where to look, not the mask decoder alone",
    "visual_cot_scale": "factor on the box that is cut out",
    "merge": "how the attention of a phrase's tokens is merged: mean or max",
}

_OF_GROUNDING = ("sam", "sam_checkpoint", "merge")


@dataclass(frozen=True)
class ModelArguments:
    """Arguments of a model, read and checked.

    Attributes:
        model: The name that was asked for.
        pretrained: Folder or hub id of the LMM.
        heads: What to ground with, None for chat alone; ``auto`` is loaded when a request needs it.
        device: Where to run, None where nobody said.
        options: Options of loading the LMM, without a device.
        grounding: Those of ``sam``, ``sam_checkpoint`` and ``merge`` that were given.
        visual_cot: Which questions get a second look.
        fetch: Whether anything may be fetched.
    """

    model: Defaults
    pretrained: str
    heads: str | None
    device: str | None
    options: LoadOptions
    grounding: Mapping[str, Any]
    visual_cot: VisualCotMode
    fetch: bool

    @classmethod
    def read(cls, model: Defaults, given: Mapping[str, Any]) -> ModelArguments:
        """Read arguments of a model.

        Args:
            model: The name that they are for.
            given: Values by name; ``none`` and ``null`` mean None.

        Raises:
            UnknownArgument: A name or a value that does not exist, or no checkpoint.
        """
        from flmm_plugin.adapters.answering.visual_cot import VisualCotMode  # costs torch

        refuse_unknown(model.name, given, MODEL_ARGUMENTS)
        said = {name: none_if_said(value) for name, value in given.items()}
        said = {name: value for name, value in said.items() if value is not None}
        pretrained = str(said.get("pretrained", model.pretrained))
        if not pretrained:
            raise UnknownArgument(f"{model.name} has no model of its own: give pretrained=<folder or hub id>")
        heads = "auto" if given.get("heads", "") == "" else said.get("heads")
        visual_cot = VisualCotMode.taken_from(said)
        if visual_cot.always and heads is None:
            raise UnknownArgument("visual_cot needs heads to find what to look at; give --model_args heads=<file>")
        if "sam" in given:
            said["sam"] = str(given["sam"])  # where `none` is a choice, not an absence
        options = {name: said[name] for name in LoadOptions.help_texts() if name in said and name != "device"}
        grounding = {name: said[name] for name in _OF_GROUNDING if name in said}
        fetch = as_switch("fetch", given.get("fetch", True))
        return cls(model, pretrained, heads, said.get("device"), LoadOptions(**options), grounding, visual_cot, fetch)

    @property
    def heads_wait(self) -> bool:
        """Tell whether heads are loaded when a request needs them; those that ship with a model always are."""
        return self.heads == "auto" and not is_model(self.pretrained)

    def load(self, device: str) -> GroundedLMM:
        """Load the LMM that answers. It is imported here: naming a model must not cost torch.

        Args:
            device: Where to, unless a device map splits the LMM.

        Raises:
            UnknownArgument: The checkpoint is of another family than the name is for.
        """
        from flmm_plugin.backbones import family_of
        from flmm_plugin.grounded_lmm import GroundedLMM

        if self.model.families:
            family = family_of(self.pretrained, revision=self.options.revision)
            if family not in self.model.families:
                raise UnknownArgument(
                    f"{self.model.name} is for {' and '.join(self.model.families)} models, {self.pretrained} is a "
                    f"{family!r} model: use --model {model_for(family)}"
                )
        options = self.options
        if not options.device_map:
            options = dataclasses.replace(options, device=device)
        heads, grounding = self.heads, dict(self.grounding)
        if self.heads_wait:
            heads, grounding = None, {name: value for name, value in grounding.items() if name == "merge"}
        return GroundedLMM.from_pretrained(self.pretrained, heads, options=options, fetch=self.fetch, **grounding)

    def take_heads(self, lmm: GroundedLMM) -> bool:
        """Load the heads that waited for a request that needs them.

        Args:
            lmm: The LMM that `load` returned.

        Returns:
            Whether they were loaded now.

        Raises:
            HeadsMismatch: There are none; the message says what can be done.
            NotReady: They are not here, and nothing may be fetched.
        """
        if not self.heads_wait or lmm.heads is not None:
            return False
        given = {name: value for name, value in self.grounding.items() if name != "merge"}
        lmm.load_heads("auto", revision=self.options.revision, fetch=self.fetch, **given)
        lmm.need_heads()
        return True


def checked_batch_size(value: Any) -> int:
    """Read a positive whole number, also from text.

    Raises:
        UnknownArgument: It is none.
    """
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = 0
    if size < 1:
        raise UnknownArgument(
            f"batch_size {value!r} is no positive whole number; this model does not search for one, give it"
        )
    return size
