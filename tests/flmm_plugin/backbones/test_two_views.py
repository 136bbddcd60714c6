"""Maps to look at, of families that show a picture twice: each layer's own, whatever order heads read them in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flmm_plugin.capture import merged_rows, read_sequence
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads.manifest import PROMPT, SEPARATOR
from flmm_plugin.passages import Passage

from .families import FAMILIES
from .test_conformance import noise, user


@pytest.mark.parametrize("name", ["llava_next_vicuna", "mgm_hd"])
def test_maps_are_sorted_by_layer(name: str, load_family: Callable[..., Any]) -> None:
    backbone, picture = load_family(name), noise(150, 90, 1)
    found = torch.from_numpy(GroundedLMM(backbone).attention_maps(picture, "a red sofa").maps)
    passage = Passage.of_phrases(backbone.tokenizer, ["a red sofa"], SEPARATOR)
    ids, groups = passage.ids, passage.groups
    encoded = backbone.encode([user(PROMPT)], [[picture]]).extended([ids], backbone.pad_id)
    tokens = encoded.image_tokens[0][0]
    slots = torch.tensor(groups[0]) + encoded.length - len(ids)
    rows = read_sequence(backbone, encoded, [slots], [tokens.slots]).attention(0)
    as_heads_read = backbone.attention_maps(merged_rows(rows, [len(rows)], "mean"), tokens)[0]
    layers, heads = backbone.num_layers, backbone.num_heads
    assert found.shape == (layers, 2 * heads, tokens.grid.height, tokens.grid.width)
    for channel, (view, layer, head) in enumerate(FAMILIES[name].map_order(2, layers, heads)):
        torch.testing.assert_close(found[layer, view * heads + head], as_heads_read[channel])
