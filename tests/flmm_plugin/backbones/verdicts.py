"""What this package says about any type of model: it grounds, or it is refused in one sentence.

Everything else is a bug: an exception of another library, a row that is not eager's, a rectangle that lands elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones import load_backbone
from flmm_plugin.backbones.base import EncodedChat
from flmm_plugin.backbones.locality import without_mixing
from flmm_plugin.capture import read_answer, read_sequence
from flmm_plugin.errors import FlmmError
from flmm_plugin.heads.manifest import SOFTMAX
from flmm_plugin.token_mixers import token_mixers

from .tiny_types import build

# Width x height: wide, tall, tiny, usual.
SIZES = ((420, 90), (75, 300), (13, 9), (160, 120))


@dataclass(frozen=True)
class Verdict:
    """What became of a type.

    Attributes:
        kind: ``grounds``; ``chats`` (grounding is refused); ``refused`` (by loading); ``not built`` (no tiny
            instance could be made here that transformers alone takes); ``bug``.
        reason: One sentence; empty where it grounds.
        views: Views of a picture.
    """

    kind: str
    reason: str = ""
    views: int = 0


class Wrong(Exception):
    """A check that did not hold."""


def verdict_of(kind: str, folder: Path) -> Verdict:
    """Build a tiny instance of a type and say what became of it; never raises."""
    try:
        build(kind, folder)
    except Exception as exc:
        return Verdict("not built", _sentence(exc, kind, folder))
    try:
        found = verdict(folder)
    except FlmmError as exc:
        found = Verdict("chats", str(exc))
    except Exception as exc:
        return Verdict("bug", _sentence(exc, kind, folder))
    if found.kind == "refused":
        try:
            alone(folder)
        except Exception as exc:
            return Verdict("not built", f"transformers alone fails with it: {_sentence(exc, kind, folder)}")
    return replace(found, reason=found.reason.replace(str(folder), kind).replace("\n", " "))


def alone(folder: Path) -> None:
    """Let transformers answer a chat by itself: an instance that it does not take either is none."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    writer = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    text = writer.apply_chat_template(user("Where?"), add_generation_prompt=True, tokenize=False)
    inputs = processor(images=[noise(160, 120, 1)], text=[text], return_tensors="pt").to(model.dtype)
    with torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False)


def _sentence(exc: Exception, kind: str, folder: Path) -> str:
    return f"{type(exc).__name__}: {exc}".replace(str(folder), kind).replace("\n", " ")[:240]


def verdict(folder: Path) -> Verdict:
    """Load a model from a folder, chat, read its attention, and follow a rectangle there and back."""
    try:
        backbone = load_backbone(folder, device="cpu", dtype="float32")
    except FlmmError as exc:
        return Verdict("refused", str(exc))
    try:
        chats = [user("What is in the image?"), user("the dog on a red sofa. Where?"), user("Where?")]
        pictures = [[noise(160, 120, 1)], [noise(60, 100, 2)], [noise(150, 40, 4)]]
        encoded = backbone.encode(chats, pictures)
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1, "pad_token_id": backbone.pad_id}
        generated = backbone.generate(encoded, **options)
        with torch.no_grad():
            plain = backbone.model(**encoded.inputs).logits
            plain_ids = backbone.model.generate(**encoded.inputs, **options)
        require(torch.equal(plain_ids, generated.sequences), "generated ids are not those of the model alone")
    except FlmmError as exc:
        return Verdict("refused", str(exc))
    try:
        columns = [torch.cat([one.slots for one in tokens]) for tokens in encoded.image_tokens]
        facts = backbone.facts
    except FlmmError as exc:
        return Verdict("chats", str(exc))
    try:
        rows = [torch.arange(int(one.max()) + 1, encoded.length) for one in columns]
        capture = AttentionCapture(backbone.decoder, rows, columns)
        with torch.no_grad(), capture.active():
            captured = backbone.model(**encoded.inputs).logits
        require(torch.equal(plain, captured), "logits differ with capture on")
        read = read_sequence(backbone, encoded, rows, columns)
    except FlmmError as exc:
        return Verdict("chats", str(exc))
    eager = load_backbone(folder, device="cpu", dtype="float32", attn_implementation="eager")
    compare(eager, encoded, read, rows, columns)
    every = [list(range(length)) for length in generated.lengths]
    read_answer(backbone, encoded, generated, every, columns)
    alone = backbone.encode(chats[1:2], pictures[1:2])
    require(alone.item_ids(0) == encoded.item_ids(1), "a chat in a batch has other tokens than alone")
    require(alone.image_tokens[0][0].grid == encoded.image_tokens[1][0].grid, "a picture's grid depends on its batch")
    for size in SIZES:
        if taken(backbone, size):
            rectangle(backbone, size, facts.maps_per_image)
    return Verdict("grounds", views=facts.maps_per_image)


def taken(backbone: Any, size: tuple[int, int]) -> bool:
    """Whether the stock processor and model take a picture of this size at all."""
    from flmm_plugin.backbones.encoding import REFUSALS

    try:
        with torch.no_grad():
            backbone.model(**backbone.encode([user("Where?")], [[noise(*size, 5)]]).inputs)
    except (*REFUSALS, FlmmError):
        return False
    return True


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@contextmanager
def eager_weights(decoder: Any) -> Iterator[dict[int, Tensor]]:
    """Attention weights of the decoder's layers, as its own eager function returns them, by module."""
    kept: dict[int, Tensor] = {}
    modules = {sys.modules[type(one).__module__] for one in decoder.modules()}
    modules = {one for one in modules if hasattr(one, "eager_attention_forward")}
    stock = {one: one.eager_attention_forward for one in modules}

    def keeping(function: Any) -> Any:
        def keep(module: Any, *args: Any, **kwargs: Any) -> Any:
            out = function(module, *args, **kwargs)
            kept[id(module)] = out[1].detach()
            return out

        return keep

    for one in modules:
        one.eager_attention_forward = keeping(stock[one])
    try:
        yield kept
    finally:
        for one in modules:
            one.eager_attention_forward = stock[one]


def compare(eager: Any, encoded: EncodedChat, read: Any, rows: list[Tensor], columns: list[Tensor]) -> None:
    """Captured rows against the weights of the eager kernel, in a forward pass that is the model's own."""
    with torch.no_grad(), eager_weights(eager.decoder) as kept:
        eager.model(**encoded.inputs)
    mixers = [one for one in token_mixers(eager.decoder) if one.heads]
    softmax = [one for one in mixers if one.kind == SOFTMAX]
    require(bool(softmax) and all(id(one.module) in kept for one in softmax), "the eager kernel gave no weights")
    for item, slots in enumerate(rows):
        got = read.attention(item).flatten(1, 2)
        require(got.shape[1] == sum(one.heads for one in mixers), f"{got.shape[1]} maps of a token")
        first = 0
        for one in mixers:
            maps = got[:, first : first + one.heads]
            first += one.heads
            if one.kind == SOFTMAX:
                expected = kept[id(one.module)][item][:, slots][..., columns[item]].transpose(0, 1)
                off = float((maps - expected).abs().max())
                require(off < 1e-5, f"rows are {off:.1e} off eager's")
        require(float(got.max()) > 0, "no row looks at the picture")


def rectangle(backbone: Any, size: tuple[int, int], maps: int) -> None:
    """Paint a rectangle: tokens whose cells it covers must change and no others, and it must come back where it was."""
    width, height = size
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[height // 4 : height * 4 // 5, width // 3 : width * 6 // 7] = True
    painted = np.repeat(np.where(mask.numpy()[..., None], 255, 0).astype(np.uint8), 3, axis=2)
    seen = []
    for pixels in (painted, painted * 0, painted * 0 + 255):
        encoded = backbone.encode([user("Where?")], [[Image.fromarray(pixels)]])
        with without_mixing():
            seen.append(backbone.embedded(encoded.inputs)[0].float())
    tokens = encoded.image_tokens[0][0]
    require(len(tokens.views) == maps, f"{len(tokens.views)} views of a {width} x {height} picture, {maps} usually")
    painted_, black, white = (one[tokens.slots] for one in seen)
    whole = (white - black).norm(dim=-1)
    changed = (painted_ - black).norm(dim=-1)
    start = 0
    for view in tokens.views:
        cells = slice(start, start + view.height * view.width)
        start = cells.stop
        coverage = view.image_to_grid(mask)
        most = whole[cells].max()
        lit = (changed[cells] > 0.1 * most).reshape(view.height, view.width)
        dark = ((painted_ - white)[cells].norm(dim=-1) > 0.1 * most).reshape(view.height, view.width)
        # Resampling reaches a cell, and two pixels of a picture that is enlarged.
        reach = 1 + int(2 / min(view.scale_y, view.scale_x, 2))
        for what, wrong in (
            ("covered by the rectangle did not change", (coverage > 0.9) & ~lit),
            ("outside the rectangle changed", (coverage < 1e-6) & lit & ~near(coverage, reach)),
            ("within the rectangle does not show all of it", (coverage > 1 - 1e-6) & dark & ~near(1 - coverage, reach)),
        ):
            at = wrong.nonzero().tolist()
            require(not at, f"{width} x {height}: cell {at[:1]} of {tuple(coverage.shape)} {what}")
        require(bool(lit.any()), f"{width} x {height}: no cell changed")
        seen_part = view.grid_to_image(torch.ones(view.height, view.width), fill=0.0) > 0.5
        back = (view.grid_to_image(lit.float(), fill=0.0) > 0.5) & seen_part
        visible = mask & seen_part
        edge = float(visible.any(1).sum()) / view.scale_y + float(visible.any(0).sum()) / view.scale_x
        missed = float((back ^ visible).sum())
        require(
            missed <= 1.1 * reach * view.scale_y * view.scale_x * (2 * edge + 4) + 4,
            f"{width} x {height}: the rectangle came back {missed:.0f} pixels off",
        )


def near(values: Tensor, reach: int) -> Tensor:
    """Cells that are no further than this from one with a value above 0."""
    grown = torch.nn.functional.max_pool2d((values > 1e-6)[None, None].float(), 2 * reach + 1, 1, reach)[0, 0]
    return grown > 0
