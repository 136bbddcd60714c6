"""What released heads compute, a second time: straight lines over the names of a released file.

Written from the description of the method and its checkpoints, not from this package's heads: no module of
`flmm_plugin` is used. SAM's own parts are segment-anything's modules, loaded by their released names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from segment_anything.modeling import Sam
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Padding:
    """What the LMM's processor did: a picture of ``height x width`` in a padded square of ``side``, all in pixels."""

    top: int
    left: int
    height: int
    width: int
    side: int


def resized_then_padded(height: int, width: int, side: int) -> Padding:
    """Longest side to ``side``, the other cut off to whole pixels, then padded to a square, content in the middle."""
    longest = max(height, width)
    new_height, new_width = int(height * side / longest), int(width * side / longest)
    return Padding((side - new_height) // 2, (side - new_width) // 2, new_height, new_width, side)


def padded_then_resized(height: int, width: int) -> Padding:
    """Padded to a square at its own size; the resizing afterwards changes no ratio."""
    side = max(height, width)
    return Padding((side - height) // 2, (side - width) // 2, height, width, side)


def released_state(
    channels: int, layers: int, hidden: int, sam: Sam, base: int, drift: float = 0.3
) -> dict[str, Tensor]:
    """A random file in the released layout: 53 tensors of the mask head, SAM's prompt encoder and decoder, text.

    Args:
        channels: Attention maps.
        layers: Of hidden states.
        hidden: Their size.
        sam: Whose prompt encoder and mask decoder it began with.
        base: Channels of the mask head's first stage, 64 in released files.
        drift: How far training took SAM's parts away.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, spread: float) -> Tensor:
        return torch.randn(shape, generator=generator) * spread

    state: dict[str, Tensor] = {}

    def block(name: str, out: int, into: int, kernel: int) -> None:
        state[f"{name}.conv.weight"] = draw(out, into, kernel, kernel, spread=(2 / (into * kernel**2)) ** 0.5)
        state[f"{name}.gn.weight"] = 1 + draw(out, spread=0.2)
        state[f"{name}.gn.bias"] = draw(out, spread=0.2)

    widths = [base, 2 * base, 4 * base, 8 * base]
    for stage, width in enumerate(widths):
        name = f"mask_head.encoder.{stage}.{0 if stage == 0 else 1}.convs"
        block(f"{name}.0", width, channels if stage == 0 else widths[stage - 1], 3)
        block(f"{name}.1", width, width, 3)
    for level in (2, 1, 0):
        name = f"mask_head.decoder.{level}"
        block(f"{name}.upsample.interp_upsample.1", widths[level], widths[level + 1], 1)
        block(f"{name}.conv_block.convs.0", widths[level], 2 * widths[level], 3)
        block(f"{name}.conv_block.convs.1", widths[level], widths[level], 3)
    state["mask_head.conv_seg.weight"] = draw(1, base, 1, 1, spread=2 / base**0.5)
    state["mask_head.conv_seg.bias"] = draw(1, spread=0.1)
    for name, tensor in sam.state_dict().items():
        if name.startswith(("prompt_encoder.", "mask_decoder.")):
            fresh = tensor.clone()
            # The position code is frozen; the rest was trained on, so it is no longer what SAM's own file says.
            if "gaussian" not in name:
                fresh = fresh + torch.randn(tensor.shape, generator=generator) * drift
            state[f"sam.model.{name}"] = fresh
    width = int(sam.prompt_encoder.embed_dim)
    state["text_proj.weight"], state["text_proj.bias"] = (
        draw(width, hidden, spread=hidden**-0.5),
        draw(width, spread=0.1),
    )
    state["text_layer_weights"] = 1 + draw(layers, spread=0.5)
    return state


def mask_head(state: Mapping[str, Tensor], maps: Tensor) -> Tensor:
    """Maps ``[1, c, h, w]`` -> logits ``[h', w']``: the U-Net on a canvas of 64 cells."""

    def block(x: Tensor, name: str) -> Tensor:
        weight = state[f"mask_head.{name}.conv.weight"]
        x = F.conv2d(x, weight, None, 1, weight.shape[-1] // 2)
        x = F.group_norm(x, 1, state[f"mask_head.{name}.gn.weight"], state[f"mask_head.{name}.gn.bias"], 1e-5)
        return F.relu(x)

    def double(x: Tensor, name: str) -> Tensor:
        return block(block(x, f"{name}.convs.0"), f"{name}.convs.1")

    x = maps / maps.sum((-1, -2), keepdim=True).clamp(min=1e-12)
    x = F.interpolate(x, scale_factor=max(1.0, 64 / max(maps.shape[-2:])), mode="bilinear", align_corners=False)
    height, width = x.shape[-2:]
    x = F.pad(x, (0, (8 - width % 8) % 8, 0, (8 - height % 8) % 8))
    first = double(x, "encoder.0.0")
    second = double(F.max_pool2d(first, 2), "encoder.1.1")
    third = double(F.max_pool2d(second, 2), "encoder.2.1")
    x = double(F.max_pool2d(third, 2), "encoder.3.1")
    for level, skip in ((2, third), (1, second), (0, first)):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = block(x, f"decoder.{level}.upsample.interp_upsample.1")
        x = double(torch.cat([skip, x], 1), f"decoder.{level}.conv_block")
    x = x[..., :height, :width]
    return F.conv2d(x, state["mask_head.conv_seg.weight"], state["mask_head.conv_seg.bias"])[0, 0]


def unpadded(logits: Tensor, padding: Padding) -> Tensor:
    """Cut the picture out of logits ``[n, h', w']`` over the padded square, in whole cells."""
    rows, columns = logits.shape[-2:]
    top, left = padding.top * rows // padding.side, padding.left * columns // padding.side
    height = int(padding.height * rows / padding.side + 0.5)
    width = int(padding.width * columns / padding.side + 0.5)
    return logits[:, top : top + height, left : left + width]


def ground(
    state: Mapping[str, Tensor],
    sam: Sam,
    rows: Sequence[Tensor],
    hidden: Sequence[Tensor],
    image: Image.Image,
    padding: Padding | None,
) -> tuple[Tensor, Tensor]:
    """Masks of all phrases of one picture.

    Args:
        state: A released file.
        sam: Meta's SAM; its prompt encoder and mask decoder are overwritten by the released ones.
        rows: Per phrase, attention of its tokens, ``[t, c, h, w]``, not normalised.
        hidden: Per phrase, ``[t, m, d]``.
        image: The original picture.
        padding: How the processor padded it; None: the maps cover the picture as they are.

    Returns:
        The mask head's logits without padding ``[n, h', w']`` and the refined ones ``[n, H, W]``.
    """
    for part in ("prompt_encoder", "mask_decoder"):
        prefix = f"sam.model.{part}."
        loaded = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
        getattr(sam, part).load_state_dict(loaded)
    coarse = torch.stack([mask_head(state, phrase.mean(0, keepdim=True)) for phrase in rows])
    if padding is not None:
        coarse = unpadded(coarse, padding)
    return coarse, refine(state, sam, coarse, hidden, image)


def refine(
    state: Mapping[str, Tensor], sam: Sam, coarse: Tensor, hidden: Sequence[Tensor], image: Image.Image
) -> Tensor:
    height, width = image.height, image.width
    side = sam.image_encoder.img_size
    scale = side / max(height, width)
    new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels: Array = np.asarray(image.convert("RGB").resize((new_width, new_height), Image.Resampling.BILINEAR))
    canvas = sam.preprocess(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float())
    embedding = sam.image_encoder(canvas)
    padding = min(-1.0, coarse.min().item())
    mixture = torch.softmax(state["text_layer_weights"], 0)
    found = []
    for logits, states in zip(coarse, hidden, strict=True):
        prompt = F.interpolate(logits[None, None], (new_height, new_width), mode="bilinear", align_corners=False)
        square = torch.full((1, 1, side, side), padding)
        square[..., :new_height, :new_width] = prompt
        cells = 4 * (side // (side // embedding.shape[-1]))
        prompt = F.interpolate(square, (cells, cells), mode="bilinear", align_corners=False)
        probable = F.interpolate(logits.sigmoid()[None, None], (height, width), mode="bilinear", align_corners=False)
        ys, xs = np.nonzero((probable[0, 0] > 0.5).numpy())
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [0, 0, width, height]
        corners = np.array(box, dtype=np.float64).reshape(2, 2) * [new_width / width, new_height / height]
        sparse, dense = sam.prompt_encoder(
            points=None, boxes=torch.tensor(corners.reshape(1, 4), dtype=torch.float32), masks=prompt
        )
        mixed = (states * mixture[None, :, None]).sum(1)
        text = F.linear(mixed, state["text_proj.weight"], state["text_proj.bias"])
        low, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=torch.cat([sparse, text[None]], 1),
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        whole = F.interpolate(low, (side, side), mode="bilinear", align_corners=False)[..., :new_height, :new_width]
        found.append(F.interpolate(whole, (height, width), mode="bilinear", align_corners=False)[0, 0])
    return torch.stack(found)
