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
from flmm_plugin.backbones.processor_probe import measured_frame
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


@pytest.mark.parametrize("size", [(640, 427), (100, 333), (13, 9), (64, 64)])
@pytest.mark.parametrize("kind", PROCESSORS)
def test_what_was_measured_is_what_was_done(kind: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[kind]()
    width, height = size
    found = measured_frame(processor, height, width, "it")
    known = follow_processor(processor, height, width)
    assert (found.height, found.width) == (known.height, known.width)
    # The corners of the view, in original pixels: half an input pixel and one original one off, at most.
    for axis in ("y", "x"):
        scale, offset = (getattr(found, f"{name}_{axis}") for name in ("scale", "offset"))
        true_scale, true_offset = (getattr(known, f"{name}_{axis}") for name in ("scale", "offset"))
        tolerance = 1 + 0.5 * true_scale
        assert abs(offset - true_offset) < tolerance
        assert abs(offset + 56 * scale - (true_offset + 56 * true_scale)) < tolerance


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
        (lambda pixels: pixels.repeat(5, 1, 1, 1), r"\(5, 3, 56, 56\) of one picture.*tiles"),
        (lambda pixels: pixels.flatten(1), "flat patches"),
        (lambda pixels: pixels * 0, "the same of black and white"),
    ],
)
def test_processors_that_do_not_keep_a_grid_are_refused(change: Any, message: str) -> None:
    with pytest.raises(BackboneUnsupported, match=message):
        measured_frame(Odd(change), 200, 300, "it")


def test_an_unknown_family_goes_the_generic_way(load_family: Load) -> None:
    backbone = load_family("auto_vipllava")
    assert type(backbone) is auto.AutoBackbone
    assert backbone.cells(16, (56, 56)) == (4, 4, 14)
    assert backbone.cells(4, (56, 56)) == (2, 2, 28)  # blocks of patches that were merged
    with pytest.raises(BackboneUnsupported, match="7 image tokens"):
        backbone.cells(7, (56, 56))


def test_tokens_in_another_order_are_found_out(load_family: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as patches, but not their cells: what a query-based projector would give."""
    backbone = load_family("auto_vipllava")
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    plain = type(backbone.model.model).get_image_features

    def elsewhere(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = plain(self, *args, **kwargs)
        out.pooler_output = out.pooler_output[:, shuffled]
        return out

    monkeypatch.setattr(type(backbone.model.model), "get_image_features", elsewhere)
    monkeypatch.setattr(backbone, "_tested", set())
    with pytest.raises(BackboneUnsupported, match="reading order"):
        _ = backbone.encode([user("Where?")], [[Image.new("RGB", (60, 60))]]).image_tokens


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
    """Tiles in a sequence of their own making, which only a file of its own could know."""
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


def test_tiles_of_an_unknown_family_are_refused_by_name(tmp_path: Path) -> None:
    save_idefics3(tmp_path)
    backbone = load_backbone(tmp_path, device="cpu")
    assert type(backbone) is auto.AutoBackbone
    with pytest.raises(BackboneUnsupported, match="pixel_values"):
        _ = backbone.encode([user("Where?")], [[Image.new("RGB", (100, 60))]]).image_tokens
