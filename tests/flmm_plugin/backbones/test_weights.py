"""What only real weights can confirm of each family.

Run by whoever has them: ``FLMM_WEIGHTS=/models pytest -m weights tests/flmm_plugin/backbones``, with each repository in
a folder of the last part of its hub name. HPT runs code of its repository: read it, then set
``FLMM_TRUST_REMOTE_CODE=1``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from flmm_plugin.backbones import load_backbone
from flmm_plugin.capture import read_sequence

pytestmark = pytest.mark.weights


@dataclass(frozen=True)
class Published:
    """A repository and the numbers that heads expect of it; None where they go by the size of the picture.

    Attributes:
        hub: Its name.
        layers: Decoder layers.
        heads: Query heads per layer.
        tokens: Image tokens of a square picture.
        grid: Cells per side of the finest view.
        views: Views per picture.
    """

    hub: str
    layers: int
    heads: int
    tokens: int | None
    grid: int | None
    views: int | None = 1

    @property
    def folder(self) -> Path:
        folder = Path(os.environ["FLMM_WEIGHTS"]) / self.hub.rpartition("/")[2]
        if not folder.is_dir():
            pytest.skip(f"hf download {self.hub} --local-dir {folder}")
        return folder

    def load(self) -> Any:
        folder, own_code = self.folder, "HPT" in self.hub
        if own_code and "FLMM_TRUST_REMOTE_CODE" not in os.environ:
            pytest.skip(f"runs code: read {folder}/projector/*.py, then set FLMM_TRUST_REMOTE_CODE=1")
        return load_backbone(folder, trust_remote_code=own_code)


PUBLISHED = [
    Published("llava-hf/llava-1.5-7b-hf", 32, 32, 576, 24),
    Published("llava-hf/llava-v1.6-vicuna-7b-hf", 32, 32, None, None, 2),
    Published("llava-hf/llava-v1.6-mistral-7b-hf", 32, 32, None, None, 2),
    Published("llava-hf/llava-onevision-qwen2-7b-ov-hf", 28, 28, None, None, None),
    Published("Qwen/Qwen2.5-VL-3B-Instruct", 36, 16, None, None),
    Published("Qwen/Qwen2.5-VL-7B-Instruct", 28, 28, None, None),
    Published("Qwen/Qwen3-VL-4B-Instruct", 36, 32, None, None),
    Published("Qwen/Qwen3-VL-8B-Instruct", 36, 32, None, None),
    Published("OpenGVLab/InternVL3-8B-hf", 28, 28, None, None, None),
    Published("deepseek-community/deepseek-vl-1.3b-chat", 24, 16, 576, 24),
    Published("deepseek-community/deepseek-vl-7b-chat", 30, 32, 576, 24),
    Published("YanweiLi/MGM-2B", 18, 8, 576, 24),
    Published("YanweiLi/MGM-7B", 32, 32, 576, 24),
    Published("YanweiLi/MGM-7B-HD", 32, 32, 2880, 48, 2),
    Published("HyperGAI/HPT", 32, 32, 784, 28),
    Published("HyperGAI/HPT1_5-Air-Llama-3-8B-Instruct-multimodal", 32, 32, 1024, 32),
]


def scene() -> Image.Image:
    """A large red disc on the right of a plain picture."""
    picture = Image.new("RGB", (640, 480), (235, 235, 225))
    ImageDraw.Draw(picture).ellipse((400, 140, 600, 340), fill=(215, 30, 30))
    return picture


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.hub.rpartition("/")[2])
def test_it_loads_sees_and_looks(published: Published) -> None:
    """Strict loading; the numbers of the paper; an answer that names the colour; a word that looks to its place."""
    backbone = published.load()
    facts = backbone.facts
    assert (facts.layers, facts.heads) == (published.layers, published.heads)
    assert published.views in (None, facts.maps_per_image)
    head = backbone.model.lm_head.weight
    if not backbone.model.config.get_text_config().tie_word_embeddings:
        assert head.data_ptr() != backbone.model.get_input_embeddings().weight.data_ptr()

    def ask(question: str) -> Any:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return backbone.encode([[{"role": "user", "content": content}]], [[scene()]])

    encoded = ask("What colour is the disc? Answer with one word.")
    tokens = encoded.image_tokens[0][0]
    assert published.tokens in (None, len(tokens.slots))
    if published.grid is not None:
        assert (tokens.grid.height, tokens.grid.width) == (published.grid, published.grid)
    answer = backbone.generate(encoded, max_new_tokens=8, do_sample=False)
    assert "red" in backbone.tokenizer.decode(answer.answer_ids(0), skip_special_tokens=True).lower()

    words = backbone.tokenizer("the red disc", add_special_tokens=False)["input_ids"]
    written = ask("Please give me a description of the image.").extended([words], backbone.pad_id)
    tokens = written.image_tokens[0][0]
    slots = torch.arange(written.length - len(words), written.length)
    rows = read_sequence(backbone, written, [slots], [tokens.slots]).attention(0)
    maps = backbone.attention_maps(rows.mean(0, keepdim=True), tokens)[0].float().cpu()
    disc = tokens.grid.image_to_grid(torch.as_tensor(_disc())) > 0.5
    maps = maps / maps.flatten(1).sum(1).clamp(min=1e-12)[:, None, None]
    share = maps[:, disc].sum(1)
    # Some head looks at the disc several times as much as it would if it looked everywhere alike.
    assert float(share.max()) > 4 * float(disc.float().mean())


def _disc() -> Any:
    import numpy as np

    pixels = np.asarray(scene()).astype(int)
    return (pixels[..., 0] > 180) & (pixels[..., 1] < 100)
