"""Frozen large multimodal models: one file per family, and `load_backbone`, which finds the family of a checkpoint."""

from __future__ import annotations

from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from flmm_plugin.backbones.registry import families, family_class, family_of, folder_of
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.devices import checked_device
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.options import LoadOptions

if TYPE_CHECKING:
    from flmm_plugin.backbones.base import Backbone

__all__ = ["families", "family_class", "family_of", "load_backbone"]


def load_backbone(
    pretrained: str | PathLike[str] = EMBEDDED, options: LoadOptions | None = None, **given: Any
) -> Backbone:
    """Load a frozen model with its own processor.

    A model of a family without a file of its own goes the generic way (`flmm_plugin.backbones.auto`).

    Args:
        pretrained: A hub name, a folder, or ``flmm_tiny`` for the model that the package carries.
        options: All options at once, instead of the next.
        **given: Fields of `LoadOptions` by name, such as ``dtype="bfloat16"``.

    Raises:
        UnknownArgument: An argument that does not exist, or that this family does not take.
        BackboneUnsupported: The checkpoint cannot be loaded, or not by this package.
    """
    options = options or LoadOptions.of("load_backbone", given)
    checked_device(options.device, "device=")
    name = fspath(pretrained)
    family = family_of(pretrained, revision=options.revision)
    implementation = family_class(family, name)
    for argument in implementation.refused_options:
        if getattr(options, argument):
            raise UnknownArgument(f"{family} models do not take {argument}; leave it out for {name}")
    backbone = implementation.load(folder_of(pretrained), name=name, options=options)
    backbone.preprocess(options.preprocessing)
    return backbone
