"""Load the frozen model of a recipe, and build the heads that learn from it.

The heads that learn are a copy without SAM's image encoder: what accelerate wraps, distributes and saves holds nothing
that is frozen.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

import flmm_plugin
from flmm_plugin import bundled
from flmm_plugin.backbones import load_backbone
from flmm_plugin.backbones.base import Backbone
from flmm_plugin.backbones.inputs import ImageTokens
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest, build_sam
from flmm_plugin.heads.sam import sam_of_file
from flmm_plugin.heads.sam_files import sam_file
from flmm_plugin.options import LoadOptions
from flmm_plugin.seal import FrozenSeal
from flmm_plugin.training.recipe import Layers, TrainRecipe


def load_lmm(recipe: TrainRecipe, device: str, backbone: Backbone | None = None, data: str = "") -> GroundedLMM:
    """Load the frozen model of a recipe (or take one that is loaded already), and build fresh heads for it."""
    asked = recipe.backbone
    if backbone is None:
        options = LoadOptions.of_weights(asked, device=None if asked.device_map else device)
        backbone = load_backbone(asked.pretrained, options)
    if recipe.control == "random":
        draw_weights(backbone)
    return GroundedLMM(backbone, build_heads(recipe, backbone, data).to(device).eval())


@torch.no_grad()
def draw_weights(backbone: Backbone) -> None:
    """Give a model freshly initialised weights (the control ``random``)."""
    model = backbone.model
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        fresh = type(model)(model.config)
    model.load_state_dict(fresh.state_dict())


class _NoEncoder(nn.Module):
    """Placeholder of SAM's frozen image encoder in the heads that are trained, which get embeddings, not images."""

    def __init__(self, img_size: int) -> None:
        super().__init__()
        self.img_size = img_size


def without_encoder(heads: GroundingHeads) -> GroundingHeads:
    """Return a copy of the heads that shares nothing with them and has no image encoder."""
    if heads.mask_refiner is None:
        return copy.deepcopy(heads)
    sam = heads.mask_refiner.sam
    encoder = sam.image_encoder
    heads.mask_refiner.clear_cache()
    sam.image_encoder = _NoEncoder(int(encoder.img_size))
    try:
        return copy.deepcopy(heads)
    finally:
        sam.image_encoder = encoder


def seals_of(lmm: GroundedLMM) -> list[FrozenSeal]:
    """Seal all that must not change: the LMM, and SAM's image encoder where there is one."""
    heads = lmm.heads
    if heads is None or heads.mask_refiner is None:
        return [lmm.seal]
    return [lmm.seal, FrozenSeal(heads.mask_refiner.sam.image_encoder)]


def build_heads(recipe: TrainRecipe, backbone: Backbone, data: str = "") -> GroundingHeads:
    """Build fresh heads; the seed decides their weights, SAM's come from its checkpoint.

    Args:
        recipe: Its section ``heads`` describes them, its seed decides their weights.
        backbone: The frozen LMM; the heads get its numbers of layers, attention heads and maps.
        data: Names of the data sets, for the manifest.

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
    manifest = HeadsManifest(
        **backbone.facts.entries,
        merge=heads.merge,
        rows=heads.rows,
        decoder=decoder,
        sam=refiner.sam if refiner.enabled else None,
        sam_prompts=asdict(refiner.prompts),
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
    """Build a SAM with the weights that heads start from.

    Args:
        sam: ``vit_b``, ``vit_l`` or ``vit_h``; or the numbers of a small one.
        checkpoint: Meta's ``.pth``, a ``.safetensors`` that holds a SAM, the name of a model that a package ships, or a
            name that `sam_file` takes. None: that of ``sam``, fetched once; of a small SAM initial weights.

    Raises:
        BadCheckpoint: No such file, or one of another size.
        NotReady: Meta's file is not here, and nothing may be fetched.
    """
    source = sam if checkpoint is None and isinstance(sam, str) else checkpoint
    if source is None:
        return build_sam(sam)
    if bundled.is_model(source):
        return sam_of_file(sam, bundled.model(source).sam())
    if source.endswith(".safetensors"):
        return sam_of_file(sam, Path(source))
    return build_sam(sam, source if source.endswith((".pth", ".pt")) else sam_file(source))


def layer_numbers(layers: Layers, count: int) -> tuple[int, ...]:
    """Return the numbers of the layers that a recipe names, from 1 to ``count``.

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
    """Find the channels of `Backbone.attention_maps` that come from some layers (numbered from 1).

    Families order their channels in their own ways (view by view, or layer by layer); so rows that hold the number of
    their layer are sent the same way, and the numbers that come out name the layers of the channels.
    """
    facts = backbone.facts
    views = facts.maps_per_image
    layer_of = [layer for layer, maps in enumerate(facts.maps_of_layers, 1) for _ in range(maps)]
    grid = ImageGrid(2, 2, 1.0, 1.0, 0.0, 0.0, 2, 2)
    tokens = ImageTokens(torch.arange(4 * views), grid, tuple([grid] * (views - 1)))
    rows = torch.tensor(layer_of, dtype=torch.float32)[None, :, None, None].expand(1, -1, 1, 4 * views)
    found = backbone.attention_maps(rows, tokens)[0].mean(dim=(-2, -1)).round().int().tolist()
    return [channel for channel, layer in enumerate(found) if layer in layers]


def freeze_idle(heads: GroundingHeads) -> GroundingHeads:
    """Exclude parameters that no loss reaches from the training: an optimiser would let them decay for nothing.

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
    """Return the parameters that learn, by name."""
    return {name: parameter for name, parameter in heads.named_parameters() if parameter.requires_grad}
