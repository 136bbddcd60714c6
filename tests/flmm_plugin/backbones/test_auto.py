"""The generic way: what it measures, and that it refuses what it cannot know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor

from flmm_plugin.backbones import auto, load_backbone
from flmm_plugin.backbones.llava import follow_processor
from flmm_plugin.backbones.measured_views import Shown
from flmm_plugin.errors import BackboneUnsupported

from .families import clip_numbers, save, template, text_numbers, tokenizer

Load = Callable[..., Any]
SQUARE = {"height": 56, "width": 56}
PROCESSORS = {
    "crop": lambda: CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE),
    "pad": lambda: LlavaImageProcessor(size={"shortest_edge": 56}, crop_size=SQUARE, do_pad=True),
    "squash": lambda: CLIPImageProcessor(size=SQUARE, do_center_crop=False),
}


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def shown_by(processor: Any, width: int, height: int) -> Shown:
    """What an image processor makes of pictures of one size, in a chat of one token."""

    def process(picture: Image.Image) -> dict[str, torch.Tensor]:
        made = processor(images=[picture], return_tensors="pt")
        return {"input_ids": torch.zeros(1, 1, dtype=torch.long), "pixel_values": made["pixel_values"]}

    return Shown(process, height, width, 14, "it")


@pytest.mark.parametrize("size", [(640, 427), (100, 333), (13, 9), (64, 64)])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_what_was_measured_is_what_was_done(kind: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[kind]()
    width, height = size
    (found,) = shown_by(processor, width, height).lattices
    known = follow_processor(processor, height, width).grid(14)
    for axis, line, pixels in (("y", found.rows, height), ("x", found.columns, width)):
        scale, offset = (getattr(known, f"{name}_{axis}") for name in ("scale", "offset"))
        assert line.step == pytest.approx(scale, rel=0.05)
        # Rows of the lattice that show only padding are not in it.
        skipped = round((line.start - offset) / scale)
        assert abs(line.start - offset - skipped * scale) < 1 + scale / 14
        ends = (max(0.0, offset), min(pixels, offset + 4 * scale))
        assert line.start < ends[0] + 1 + scale / 14
        assert line.start + line.count * line.step > ends[1] - 1 - scale / 14


class Odd:
    """An image processor that does something else to pixels."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.change = change

    def __call__(self, images: list[Image.Image], return_tensors: str) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.array(images[0])).permute(2, 0, 1)[None].float() / 255
        resized = torch.nn.functional.interpolate(pixels, (56, 56), mode="bilinear")
        return {"pixel_values": self.change(resized)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pixels: pixels.flip(-1), "does not move columns by one straight line"),
        (lambda pixels: pixels.transpose(-1, -2), "mirrors, turns or cuts"),
        (lambda pixels: torch.cat([pixels[..., 28:], pixels[..., :28]], dim=-1), "columns"),
        (lambda pixels: pixels * 0, "the same of a black and a white"),
    ],
)
def test_processors_that_do_not_keep_a_grid_are_refused(change: Any, message: str) -> None:
    with pytest.raises(BackboneUnsupported, match=message):
        shown_by(Odd(change), 300, 200)


def test_tiles_and_flat_patches_lie_where_their_pixels_come_from() -> None:
    """Four tiles, in one order or another, are one lattice; so are patches without any order."""

    def tiles(pixels: torch.Tensor) -> torch.Tensor:
        return torch.cat([pixels[..., y : y + 28, x : x + 28] for x in (0, 28) for y in (28, 0)])

    def patches(pixels: torch.Tensor) -> torch.Tensor:
        cut = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(16, -1)
        return cut[torch.randperm(16, generator=torch.Generator().manual_seed(0))][None]

    def squares(pixels: torch.Tensor) -> torch.Tensor:
        return patches(pixels).reshape(16, -1, 14, 14)

    for change in (tiles, patches, squares):
        (found,) = shown_by(Odd(change), 300, 200).lattices
        assert (found.rows.count, found.columns.count, len(found.units)) == (4, 4, 16)
        assert (found.rows.step, found.columns.step) == (pytest.approx(50, rel=0.02), pytest.approx(75, rel=0.02))
        assert max(abs(found.rows.start), abs(found.columns.start)) < 2


def test_an_unknown_family_goes_the_generic_way(load_family: Load) -> None:
    backbone = load_family("auto_vipllava")
    assert type(backbone) is auto.AutoBackbone
    grid = backbone.encode([user("Where?")], [[Image.new("RGB", (60, 60))]]).image_tokens[0][0].grid
    assert (grid.height, grid.width) == (4, 4)


def test_tokens_in_another_order_are_found_in_their_places(load_family: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_family("auto_vipllava")
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(
        type(backbone.model.model), "get_image_features", features_of(backbone, lambda x: x[:, shuffled])
    )
    monkeypatch.setattr(backbone, "_runs", {})
    monkeypatch.setattr(backbone, "_layouts", {})
    tokens = backbone.encode([user("Where?")], [[Image.new("RGB", (60, 60))]]).image_tokens[0][0]
    assert torch.equal((tokens.slots - tokens.slots.min())[shuffled], torch.arange(16))


def test_tokens_that_each_show_everything_are_refused(load_family: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as patches, but not their cells: what a query-based projector gives."""
    backbone = load_family("auto_vipllava")
    mixed = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(type(backbone.model.model), "get_image_features", features_of(backbone, lambda x: mixed @ x))
    monkeypatch.setattr(backbone, "_runs", {})
    monkeypatch.setattr(backbone, "_layouts", {})
    with pytest.raises(BackboneUnsupported, match="not the cells of a grid"):
        _ = backbone.encode([user("Where?")], [[Image.new("RGB", (60, 60))]]).image_tokens


def features_of(backbone: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """The model's own picture features, changed afterwards."""
    plain = type(backbone.model.model).get_image_features

    def elsewhere(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.pooler_output = change(out.pooler_output)
        return out

    return elsewhere


def test_processor_and_model_must_name_their_parts(load_family: Load) -> None:
    whole = load_family("auto_vipllava")
    with pytest.raises(BackboneUnsupported, match="not a processor"):
        auto.AutoBackbone(whole.model, SimpleNamespace(chat_template="x"), name="it")
    model = SimpleNamespace(config=SimpleNamespace(), eval=lambda: SimpleNamespace(requires_grad_=lambda _: model))
    nameless = auto.AutoBackbone(model, SimpleNamespace(tokenizer=whole.tokenizer, chat_template="x"), name="it")
    with pytest.raises(BackboneUnsupported, match="names no image token"):
        _ = nameless.image_token_id
    with pytest.raises(BackboneUnsupported, match="language model"):
        _ = nameless.facts


def save_idefics3(folder: Path) -> None:
    """Tiles with a row of text each, and a view of the whole."""
    from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3Processor, LlamaConfig
    from transformers import Idefics3ForConditionalGeneration as Idefics3

    tokens = tokenizer(
        fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )  # fmt: skip
    config = Idefics3Config(
        vision_config=clip_numbers(), text_config=LlamaConfig(**text_numbers(len(tokens))).to_dict(),
        image_token_id=tokens.image_token_id, scale_factor=2,
    )  # fmt: skip
    pictures = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = Idefics3Processor(pictures, tokens, image_seq_len=4, chat_template=template("<image>"))
    save(folder, lambda: Idefics3(config), processor)


def test_tiles_of_an_unknown_family_are_put_together(tmp_path: Path) -> None:
    save_idefics3(tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    assert type(backbone) is auto.AutoBackbone
    assert backbone.facts.maps_per_image == 2
    tokens = backbone.encode([user("Where?")], [[Image.new("RGB", (100, 60))]]).image_tokens[0][0]
    assert [(one.height, one.width) for one in tokens.views] == [(2, 2), (4, 4)]
