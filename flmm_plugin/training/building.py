"""From a recipe to fresh heads for a backbone: manifest, SAM weights, and which parameters learn.

Shapes: m layers, c heads per layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

import flmm_plugin
from flmm_plugin import bundled
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.backbones.inputs import ImageTokens
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import GroundingHeads, HeadsManifest, build_sam
from flmm_plugin.heads.sam import sam_of_file
from flmm_plugin.training.recipe import Layers, TrainRecipe


def build_heads(recipe: TrainRecipe, backbone: Backbone, data: str = "") -> GroundingHeads:
    """Freshly initialised heads; the seed decides their weights, SAM's come from its checkpoint.

    Args:
        recipe: Says which heads.
        backbone: The frozen LMM.
        data: What they will be trained on, for the manifest.

    Raises:
        BadCheckpoint: SAM's weights are missing or of another size.
        UnknownArgument: Layers that the backbone does not have.
    """
    heads = recipe.heads
    refiner = heads.refiner
    decoder: dict[str, Any] = {"base_channels": heads.decoder.base_channels, "upsample_to": heads.decoder.upsample_to}
    if not heads.decoder.normalise:
        decoder["normalise"] = False
    if heads.decoder.layers != "all":
        decoder["maps"] = maps_of_layers(backbone, layer_numbers(heads.decoder.layers, backbone.num_layers))
    facts = backbone.facts
    manifest = HeadsManifest(
        backbone=facts.name,
        layers=facts.layers,
        heads=facts.heads,
        hidden_size=facts.hidden_size,
        revision=facts.revision,
        maps_per_image=facts.maps_per_image,
        merge=heads.merge,
        decoder=decoder,
        sam=refiner.sam if refiner.enabled else None,
        sam_prompts={"box": refiner.prompts.box, "mask": refiner.prompts.mask, "text": refiner.prompts.text},
        keyword_selector=heads.selector,
        keyword_threshold=heads.threshold,
        prompt=heads.prompt,
        separator=heads.separator,
        template=heads.template,
        preprocessing=heads.preprocessing,
        placement=heads.placement,
        data=data,
        created_by=f"flmm train, flmm-plugin {flmm_plugin.__version__}",
    )
    torch.manual_seed(recipe.seed)
    sam = load_sam(refiner.sam, refiner.checkpoint) if refiner.enabled else None
    return freeze_idle(GroundingHeads.build(manifest, sam=sam))


def load_sam(sam: str | dict[str, Any], checkpoint: str | None) -> Sam:
    """A SAM with the weights that heads start from.

    Args:
        sam: Size, or numbers of a small one.
        checkpoint: As in `flmm_plugin.training.recipe.RefinerRecipe`.

    Raises:
        BadCheckpoint: No such file, or one of another size.
    """
    if checkpoint is not None and bundled.is_model(checkpoint):
        return sam_of_file(sam, bundled.model(checkpoint).sam())
    if checkpoint is not None and checkpoint.endswith(".safetensors"):
        return sam_of_file(sam, Path(checkpoint))
    return build_sam(sam, checkpoint)


def layer_numbers(layers: Layers, count: int) -> tuple[int, ...]:
    """Numbers of the layers that a recipe names, from 1 to ``count``.

    >>> layer_numbers("early", 24), layer_numbers("mid", 24), layer_numbers("late", 24), layer_numbers((1, 3), 4)
    ((6,), (12,), (24,), (1, 3))
    """
    if isinstance(layers, tuple):
        chosen = tuple(sorted(set(layers)))
        if not chosen or not all(1 <= one <= count for one in chosen):
            raise UnknownArgument(f"heads.decoder.layers is {list(layers)}; layers count from 1 to {count}")
        return chosen
    named = {"early": max(1, count // 4), "mid": max(1, count // 2), "late": count}
    return tuple(range(1, count + 1)) if layers == "all" else (named[layers],)


def maps_of_layers(backbone: Backbone, layers: tuple[int, ...]) -> list[int]:
    """Channels of `Backbone.attention_maps` that come from some layers (numbered from 1).

    Families order their channels in their own ways (view by view, or layer by layer); so rows that hold the number of
    their layer are sent the same way, and where a number comes out its layer's map is.
    """
    m, c, views = backbone.num_layers, backbone.num_heads, backbone.maps_per_image
    grid = ImageGrid(2, 2, 1.0, 1.0, 0.0, 0.0, 2, 2)
    tokens = ImageTokens(torch.arange(4 * views), grid, tuple([grid] * (views - 1)))
    rows = torch.arange(1, m + 1, dtype=torch.float32)[None, :, None, None].expand(1, m, c, 4 * views)
    found = backbone.attention_maps(rows, tokens)[0].mean(dim=(-2, -1)).round().int().tolist()
    return [channel for channel, layer in enumerate(found) if layer in layers]


def freeze_idle(heads: GroundingHeads) -> GroundingHeads:
    """Take parameters that no loss reaches out of the training: an optimiser would let them decay for nothing.

    They are SAM's point prompts and quality score, and whatever stands for a prompt that is not given.
    """
    refiner = heads.mask_refiner
    if refiner is None:
        heads.text_layer_weights.requires_grad_(False)
        return heads
    prompts = refiner.sam.prompt_encoder
    prompts.point_embeddings[:2].requires_grad_(False)
    prompts.not_a_point_embed.requires_grad_(False)
    prompts.point_embeddings[2:].requires_grad_(refiner.use_box)
    prompts.no_mask_embed.requires_grad_(not refiner.use_mask)
    prompts.mask_downscaling.requires_grad_(refiner.use_mask)
    refiner.sam.mask_decoder.iou_prediction_head.requires_grad_(False)
    heads.text_layer_weights.requires_grad_(refiner.use_text)
    if heads.text_proj is not None:
        heads.text_proj.requires_grad_(refiner.use_text)
    return heads


def trainable(heads: GroundingHeads) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in heads.named_parameters() if parameter.requires_grad}
