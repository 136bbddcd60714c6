"""What holds for every family, on a tiny random instance of its real classes: saved, loaded, looked at.

The rows of the conformance table are the tests of this file, its columns `families.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones.base import EncodedChat, ImageTokens
from flmm_plugin.capture import capture_alternatives, read_answer, read_sequence
from flmm_plugin.passages import Passage

from .families import FAMILIES

Load = Callable[..., Any]
ANSWER = [70, 71, 72]
# Width x height. Wide, tall, tiny, huge, square.
SIZES = {"wide": (420, 90), "tall": (75, 300), "tiny": (13, 9), "huge": (1500, 1100), "square": (64, 64)}


def user(text: str, images: int = 1) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def mixed_batch(backbone: Any) -> EncodedChat:
    """Three chats of different length with pictures of different sizes; the middle one has two."""
    pictures = [[noise(100, 60, 1)], [noise(60, 100, 2), noise(57, 56, 3)], [noise(150, 40, 4)]]
    chats = [user("What is in the image?"), user("Which of the two?", images=2), user("the dog on a red sofa. Where?")]
    return backbone.encode(chats, pictures)


def slots_behind_images(encoded: EncodedChat) -> list[Tensor]:
    return [torch.arange(int(one[-1].slots.max()) + 1, encoded.length) for one in encoded.image_tokens]


def columns(encoded: EncodedChat) -> list[Tensor]:
    return [torch.cat([one.slots for one in tokens]) for tokens in encoded.image_tokens]


def test_facts(family: str, load_family: Load) -> None:
    backbone, entry = load_family(family), FAMILIES[family]
    text = backbone.decoder.config
    facts = backbone.facts
    assert backbone.family == entry.model_type
    assert (facts.layers, facts.heads, facts.hidden_size) == (
        len(backbone.decoder.layers),
        text.num_attention_heads,
        text.hidden_size,
    )
    assert facts.maps_per_image == entry.maps_per_image
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_logits_and_ids_are_bit_identical_with_capture_on(family: str, load_family: Load) -> None:
    """The other arm is the model alone: its own call, its own `generate`."""
    backbone = load_family(family)
    encoded = mixed_batch(backbone)
    rows, image = slots_behind_images(encoded), columns(encoded)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": -1, "pad_token_id": backbone.pad_id}
    capture = AttentionCapture(backbone.decoder, rows, image)
    with torch.no_grad():
        plain = backbone.model(**encoded.inputs).logits
        plain_ids = backbone.model.generate(**encoded.inputs, **options)
        with capture.active():
            captured = backbone.model(**encoded.inputs).logits
        with AttentionCapture(backbone.decoder, rows, image).active():
            captured_ids = backbone.model.generate(**encoded.inputs, **options)
    assert torch.equal(plain, captured)
    assert torch.equal(plain_ids, captured_ids)
    assert torch.equal(plain_ids, backbone.generate(encoded, **options).sequences)


def test_rows_are_those_of_eager(family: str, load_family: Load) -> None:
    """Read as grounding reads them (positions given), compared with the eager model left to itself."""
    backbone = load_family(family)
    encoded = mixed_batch(backbone)
    rows, image = slots_behind_images(encoded), columns(encoded)
    capture = read_sequence(backbone, encoded, rows, image)
    other = load_family(family, attn_implementation="eager").model
    with torch.no_grad():
        out = other(**encoded.inputs, output_attentions=True, output_hidden_states=True)
    assert capture.attention(0).max() > 0.02, "a flat expectation would prove little"
    for item, slots in enumerate(rows):
        expected = torch.stack(out.attentions)[:, item][:, :, slots][..., image[item]].permute(2, 0, 1, 3)
        assert (capture.attention(item) - expected).abs().max() < 1e-5
        hidden = torch.stack(out.hidden_states[1:])[:, item, slots].transpose(0, 1)
        torch.testing.assert_close(capture.hidden(item), hidden, rtol=1e-4, atol=1e-4)


def test_a_batch_of_mixed_sizes_is_what_its_items_are_alone(family: str, load_family: Load) -> None:
    backbone = load_family(family)
    sizes = [(100, 60), (40, 130), (57, 56)]
    chats = [user("What is in the image?"), user("Where?"), user("the dog on a red sofa near the window. What?")]
    pictures = [noise(*size, seed) for seed, size in enumerate(sizes)]
    together = backbone.encode(chats, [[one] for one in pictures])
    read = read_sequence(backbone, together, slots_behind_images(together), columns(together))
    for item, (chat, picture) in enumerate(zip(chats, pictures, strict=True)):
        alone = backbone.encode([chat], [[picture]])
        assert alone.item_ids(0) == together.item_ids(item)
        assert alone.image_tokens[0][0].grid == together.image_tokens[item][0].grid
        single = read_sequence(backbone, alone, slots_behind_images(alone), columns(alone))
        assert (single.attention(0) - read.attention(item)).abs().max() < 1e-5


@pytest.mark.parametrize("tail", [True, False])
def test_answers_are_read_back_from_the_cache_and_without(family: str, tail: bool, load_family: Load) -> None:
    backbone = load_family(family)
    encoded = mixed_batch(backbone)
    generated = backbone.generate(encoded, max_new_tokens=4, do_sample=False, eos_token_id=-1)
    every = [list(range(length)) for length in generated.lengths]
    back = read_answer(backbone, encoded, generated, every, columns(encoded), tail=tail)
    written = encoded.extended([generated.answer_ids(item) for item in range(3)], backbone.pad_id)
    tokens = [torch.arange(written.length - 4, written.length)] * 3
    given = read_sequence(backbone, written, tokens, columns(written))
    for item in range(3):
        assert (back.attention(item) - given.attention(item)).abs().max() < 1e-5
        torch.testing.assert_close(back.hidden(item), given.hidden(item), rtol=1e-4, atol=1e-4)


def test_continuations_of_one_prompt(family: str, load_family: Load) -> None:
    backbone = load_family(family)
    encoded = backbone.encode([user("Where?")], [[noise(100, 60, 1)]])
    texts = [ANSWER, [80, 81]]
    passages = [Passage(text, [asked], [("", None)]) for text, asked in zip(texts, [[0, 2], [1]], strict=True)]
    read = [captured.rows for captured in capture_alternatives(backbone, encoded, passages, "mean")]
    for text, asked, rows in zip(texts, [[0, 2], [1]], read, strict=True):
        written = encoded.extended([text], backbone.pad_id)
        slots = torch.tensor(asked) + written.length - len(text)
        expected = read_sequence(backbone, written, [slots], columns(written)).attention(0)
        assert (rows - expected.mean(dim=0, keepdim=True)).abs().max() < 1e-5


# --- where things are ----------------------------------------------------------------------------------------------


def painted(size: tuple[int, int], inside: int, outside: int = 0) -> tuple[Image.Image, Tensor]:
    """A rectangle off the middle on a plain picture, and its mask."""
    width, height = size
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 4 : height * 4 // 5, width // 3 : width * 6 // 7] = True
    pixels = np.where(mask.numpy()[..., None], inside, outside).astype(np.uint8)
    return Image.fromarray(np.repeat(pixels, 3, axis=2)), mask


def views_shown(backbone: Any, encoded: EncodedChat, values: Tensor) -> list[Tensor]:
    """Per view of the first picture of the first chat, ``[h, w]``: what its tokens were shown."""
    placeholders = (encoded.inputs["input_ids"] == backbone.image_token_id).nonzero().tolist()
    assert len(values) == len(placeholders)
    of_slot = {slot: values[rank] for rank, (item, slot) in enumerate(placeholders) if item == 0}
    tokens: ImageTokens = encoded.image_tokens[0][0]
    flat = torch.stack([of_slot[slot] for slot in tokens.slots.tolist()])
    sizes = [view.height * view.width for view in tokens.views]
    return [part.reshape(view.height, view.width) for part, view in zip(flat.split(sizes), tokens.views, strict=True)]


@pytest.mark.parametrize("size", SIZES)
def test_a_painted_rectangle_survives_to_the_grid_and_back(family: str, size: str, load_family: Load) -> None:
    """The processor's pixels, through the model's own packing, against the mask through `ImageGrid`, in every view."""
    backbone, shown = load_family(family), FAMILIES[family].shown
    seen = []
    for inside, outside in [(255, 0), (0, 0), (255, 255)]:
        picture, mask = painted(SIZES[size], inside, outside)
        encoded = backbone.encode([user("Where?")], [[picture]])
        seen.append(views_shown(backbone, encoded, shown(backbone, encoded.inputs)))
    tokens = encoded.image_tokens[0][0]
    assert len(tokens.views) == FAMILIES[family].maps_per_image
    for view, rectangle, black, white in zip(tokens.views, *seen, strict=True):
        coverage = (rectangle - black) / (white - black).max()
        expected = view.image_to_grid(mask)
        assert expected.max() > 0.5, "the rectangle is not in view"
        assert (coverage - expected).abs().mean() < FAMILIES[family].blur / 4
        assert (coverage - expected).abs().max() < FAMILIES[family].blur
        back = view.grid_to_image(coverage, fill=0.0) > 0.5
        visible = mask & (view.grid_to_image(torch.ones(view.height, view.width), fill=0.0) > 0.5)
        cell = view.scale_y * view.scale_x
        missed = float((back ^ visible).sum())
        # The outline may lie half a cell off on every side, and no more.
        edge = 2 * (float(visible.any(1).sum()) / view.scale_y + float(visible.any(0).sum()) / view.scale_x)
        assert missed <= 0.5 * cell * edge + 4
    rows = torch.zeros(1, 1, 1, len(tokens.slots))
    maps = backbone.attention_maps(rows, tokens)
    assert maps.shape == (1, FAMILIES[family].maps_per_image, tokens.grid.height, tokens.grid.width)


def test_maps_are_layer_by_layer_and_views_on_channels(family: str, load_family: Load) -> None:
    """Coarse maps of all layers and heads come first, then the fine ones; a bright place stays where it is."""
    backbone = load_family(family)
    encoded = backbone.encode([user("Where?")], [[noise(150, 90, 1)]])
    tokens = encoded.image_tokens[0][0]
    sizes = [view.height * view.width for view in tokens.views]
    rows = torch.zeros(1, 2, 3, sum(sizes))
    start = 0
    for view, size in zip(tokens.views, sizes, strict=True):
        rows[0, :, :, start + view.width - 1] = torch.arange(1.0, 7.0).reshape(2, 3)  # upper right
        start += size
    maps = backbone.attention_maps(rows, tokens)[0]
    corner = maps[:, 0, -1]
    assert torch.equal(maps.flatten(1).amax(1), corner)
    order = FAMILIES[family].map_order(len(sizes), 2, 3)
    assert len(maps) == len(order)
    for view in range(len(sizes)):
        strength = {
            layer * 3 + head + 1: float(corner[order.index((view, layer, head))])
            for layer in range(2)
            for head in range(3)
        }
        for value, found in strength.items():
            assert found == pytest.approx(strength[1] * value, rel=1e-4)
            assert found > 0.4 * value


def test_the_saved_model_is_the_loaded_one(family: str, load_family: Load, family_folder: Load) -> None:
    if not FAMILIES[family].native:
        pytest.skip("no class of transformers loads this family: the family's own tests compare its weights")
    stock = AutoModelForImageTextToText.from_pretrained(family_folder(family)).state_dict()
    ours = load_family(family).model.state_dict()
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)
