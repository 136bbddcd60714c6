"""Read attention as the paper's code does: the eager kernel, every L x L matrix kept, rows cut out afterwards.

Features and masks equal those of this package up to rounding; what differs is the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone, EncodedChat
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.passages import Passage


@torch.no_grad()
def read(
    backbone: Backbone, encoded: EncodedChat, passages: Sequence[Passage], *, last_logits: int = 0
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Run chats that end with passages, and cut the rows of their phrases out of everything.

    Args:
        backbone: The frozen model that reads them.
        encoded: Chats with the passages behind them.
        passages: One `Passage` for each chat, with at least one phrase.
        last_logits: Positions whose vocabulary logits are computed, from the last one back; 0: all, as the paper does.

    Returns:
        Per chat, maps merged by their mean ``[n, views * m * c, h, w]``, states of the phrases' tokens ``[t, m, d]``,
        and states of all of the passage's tokens after the final norm, ``[l, d]``.
    """
    model: Any = backbone.model
    kernel = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        inputs = encoded.grounding_inputs
        out = model(
            **inputs, position_ids=backbone.positions(inputs), use_cache=False, logits_to_keep=last_logits,
            output_attentions=True, output_hidden_states=True,
        )  # fmt: skip
    finally:
        model.set_attn_implementation(kernel)
    found = []
    for item, passage in enumerate(passages):
        first, tokens = encoded.length - len(passage.ids), encoded.image_tokens[item][0]
        places = torch.tensor(passage.tokens, device=backbone.device) + first
        slots = tokens.slots.to(backbone.device)
        rows = torch.stack([layer[item][:, places][:, :, slots] for layer in out.attentions]).permute(2, 0, 1, 3)
        merged = torch.stack([part.float().mean(dim=0) for part in rows.split(passage.sizes)])
        states = torch.stack([layer[item, places] for layer in out.hidden_states[1:]], dim=1)
        found.append((backbone.attention_maps(merged, tokens), states, out.hidden_states[-1][item, first:]))
    return found


@torch.no_grad()
def ground(lmm: GroundedLMM, picture: Image.Image, phrases: Sequence[str], prompt: str | None = None) -> Tensor:
    """Ground phrases of one picture, SAM's image encoder run anew; masks ``bool[n, H, W]`` on the CPU."""
    heads = lmm.need_heads()
    encoded, passage = written(lmm, [picture], phrases, prompt)
    ((maps, states, _),) = read(lmm.backbone, encoded, [passage])
    if heads.mask_refiner is not None:
        heads.mask_refiner.clear_cache()
    hidden = [one.to(heads.device) for one in states.split(passage.sizes)]
    out = heads(maps.to(heads.device), hidden, picture, encoded.image_tokens[0][0].grid)
    return torch.as_tensor(out.logits > 0).cpu()


def written(
    lmm: GroundedLMM, pictures: Sequence[Image.Image], phrases: Sequence[str], prompt: str | None = None
) -> tuple[EncodedChat, Passage]:
    """Encode the same phrases behind the heads' prompt for each picture; what `GroundedLMM.ground` runs on."""
    manifest = lmm.need_heads().manifest
    passage = Passage.of_phrases(lmm.backbone.tokenizer, phrases, manifest.separator)
    chats = lmm.encode([manifest.prompt if prompt is None else prompt] * len(pictures), pictures, manifest.template)
    return chats.extended([passage.ids] * len(pictures), lmm.backbone.pad_id), passage
