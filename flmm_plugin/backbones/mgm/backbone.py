"""MGM (Mini-Gemini) 2B, 7B and their HD variants, from the repositories that its authors published.

transformers has no class for it and the repositories hold no code: `model` builds it, `config` reads their
configuration, and this file loads their weights strictly and prepares chats and pictures as the authors' own tools do.
A picture is padded to a square at its original size and resized to the ConvNeXt's input; the CLIP view is interpolated
from that. The method's research code does the same, so there is one preprocessing only.

HD shows the whole picture and 2 x 2 tiles of it. The method resizes the whole picture's maps to the tiles' grid and
stacks them *layer by layer* (all heads of the whole picture, then all heads of the tiles, then the next layer), unlike
LLaVA-NeXT's, which come view by view.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flmm_plugin.backbones.base import ImageTokens
from flmm_plugin.backbones.llava_like import as_tiles
from flmm_plugin.backbones.loading import load_strictly, named_failures, placed, weight_arguments
from flmm_plugin.backbones.mgm.config import mgm_config
from flmm_plugin.backbones.mgm.model import MGMForConditionalGeneration, key_mapping
from flmm_plugin.backbones.preprocessing import Paper
from flmm_plugin.backbones.text_pieces import WORDS, TextPiecesProcessor
from flmm_plugin.backbones.views import Layout, LayoutBackbone
from flmm_plugin.geometry import ImageGrid, InputFrame
from flmm_plugin.options import LoadOptions

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
#: The conversation that each language model was tuned with, as the authors' command line writes it.
TEMPLATES = {
    "llama": WORDS
    + "{% set own = messages and messages[0]['role'] == 'system' %}"
    + "{% set system = words(messages[0]['content']) if own else "
    + f'"{_VICUNA_SYSTEM}"'
    + " %}{% if system %}{{ system ~ ' ' }}{% endif %}"
    + "{% for turn in messages %}{% if turn['role'] == 'user' %}{{ 'USER: ' ~ words(turn['content']) ~ ' ' }}"
    + "{% elif turn['role'] == 'assistant' %}{{ 'ASSISTANT: ' ~ words(turn['content']) ~ '</s>' }}{% endif %}"
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "gemma": WORDS
    + "{% for turn in messages %}{% if turn['role'] == 'system' %}{{ words(turn['content']) }}{% else %}"
    + "{{ '<start_of_turn>' ~ ('model' if turn['role'] == 'assistant' else 'user') ~ '\n' ~ words(turn['content']) "
    + "~ '<end_of_turn>\n' ~ ('<eos>' if turn['role'] == 'assistant' else '') }}{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
}


class MGMBackbone(LayoutBackbone):
    """24 x 24 tokens of a picture padded to a square."""

    family: ClassVar[str] = "mgm"
    paper: ClassVar[Paper] = "same"
    several_images: ClassVar[bool] = True

    @classmethod
    def load(cls, folder: str, *, name: str, options: LoadOptions) -> MGMBackbone:
        """Load a published repository.

        Raises:
            BackboneUnsupported: Its configuration says something that is not built here, or it cannot be read.
            BadCheckpoint: Weights are damaged, missing, of another shape, or there are some that belong nowhere.
        """
        from transformers import AutoTokenizer, PreTrainedConfig

        weights = weight_arguments(options)
        with named_failures(name, folder):
            published, _ = PreTrainedConfig.get_config_dict(folder, revision=options.revision)
        config = mgm_config(published, name)
        with named_failures(name, folder):
            tokenizer = AutoTokenizer.from_pretrained(folder, revision=options.revision, config=config.text_config)
        model = load_strictly(
            MGMForConditionalGeneration, folder, name=name, config=config, key_mapping=key_mapping(), **weights
        )
        look = SquareLook(
            config.vision_config.image_size, config.image_size_aux, config.image_grid, config.image_global
        )
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        processor = TextPiecesProcessor(
            tokenizer,
            look,
            patches * (config.image_grid**2 + config.image_global),
            config.image_token_id,
            TEMPLATES[config.text_config.model_type],
        )
        kind = MGMHDBackbone if config.image_global else MGMBackbone
        return kind(placed(model, options), processor, name=name, options=options)

    def layout(self, image_height: int, image_width: int, pictures: int = 1) -> Layout:
        """The run of a picture of this size; HD: the whole picture first, then its tiles one after another."""
        config = self.model.config
        side = config.vision_config.image_size // config.vision_config.patch_size
        whole = InputFrame.of_image(image_height, image_width).padded_to_square().divided(side, side)
        per_side = int(config.image_grid)
        fine = whole.divided(side * per_side, side * per_side)
        count = fine.height * fine.width
        order = torch.arange(count).reshape(per_side, per_side, side, side).transpose(1, 2).flatten()
        if not config.image_global:
            return Layout(count, order, fine)
        first = side * side
        return Layout(first + count, torch.cat([torch.arange(first), first + order]), fine, (whole,))

    def grid(self, image_height: int, image_width: int) -> ImageGrid:
        """The finest grid on a picture of this size."""
        return self.layout(image_height, image_width).grid

    def attention_maps(self, rows: Tensor, tokens: ImageTokens) -> Tensor:
        """Maps ``[n, views * m * c, h, w]``; HD: per layer those of the whole picture, then those of the tiles."""
        maps = super().attention_maps(rows, tokens)
        if not tokens.coarse:
            return maps
        layers, heads = rows.shape[1:3]
        by_view: Tensor = maps.unflatten(1, (2, layers, heads))
        return by_view.transpose(1, 2).flatten(1, 3)


class MGMHDBackbone(MGMBackbone):
    """HD: the whole picture and its tiles."""

    maps_per_image: ClassVar[int] = 2


class SquareLook:
    """A picture as MGM's two towers take it.

    Args:
        clip_side: Side of a CLIP view in pixels.
        aux_side: Side of the ConvNeXt's input.
        per_side: Tiles along one side of the picture; 1: no tiles.
        whole: Whether the whole picture is a view beside the tiles.
    """

    mean = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

    def __init__(self, clip_side: int, aux_side: int, per_side: int, whole: bool) -> None:
        self.clip_side, self.aux_side, self.per_side, self.whole = clip_side, aux_side, per_side, whole

    def __call__(self, picture: Image.Image) -> dict[str, Tensor]:
        """``pixel_values [v, 3, s, s]`` (tiles row by row, then the whole), ``high_res_pixel_values [3, S, S]``.

        All in float32, the smaller views interpolated from the normalised large one, as the authors' tools do.
        """
        large = self.normalised(picture)[None]
        tiled = _bilinear(large, self.clip_side * self.per_side)
        views = as_tiles(tiled, self.per_side)
        if self.whole:
            views = torch.cat([views, _bilinear(tiled, self.clip_side)])
        return {"pixel_values": views, "high_res_pixel_values": large[0]}

    def normalised(self, picture: Image.Image) -> Tensor:
        """Padded to a square in CLIP's mean colour at original size, resized (bicubic, Pillow), normalised."""
        picture = picture.convert("RGB")
        side = max(picture.size)
        square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in self.mean.astype(float)))
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        pixels = np.asarray(square.resize((self.aux_side, self.aux_side), Image.Resampling.BICUBIC))
        scaled = (pixels.astype(np.float64) / 255).astype(np.float32)
        return torch.from_numpy((scaled - self.mean) / self.std).permute(2, 0, 1).contiguous()


def _bilinear(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
