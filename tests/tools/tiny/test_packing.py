"""Packed turns are read as alone, and the optimiser makes matrices orthogonal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import sample_scene
from tools.tiny import lmm, optim, packing


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return lmm.build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return lmm.build_model(len(tokenizer), tokenizer.convert_tokens_to_ids(lmm.IMAGE_TOKEN))


def test_a_packed_turn_equals_the_same_turn_alone(model: Any, tokenizer: Any) -> None:
    """The block mask hides the other turns: logits of a turn do not depend on its neighbours."""
    scene, rng = sample_scene(np.random.default_rng(0)), np.random.default_rng(1)
    turns = [language.caption(scene), language.question(scene, "color", rng)]
    packer = packing.Packer(tokenizer)
    pixels = packing.picture(scene, rng)[None]

    def last_hidden(packed: packing.Packed) -> torch.Tensor:
        start, patches = len(packer.prefix), lmm.GRID**2
        embeds = model.get_input_embeddings()(packed.ids)
        seen = lmm.see(model, pixels)
        embeds = torch.cat([embeds[:, :start], seen, embeds[:, start + patches :]], 1)
        out = model.model.language_model(
            inputs_embeds=embeds, attention_mask=packed.mask(), position_ids=packed.position, use_cache=False
        )
        hidden: torch.Tensor = out.last_hidden_state[0]
        return hidden

    with torch.no_grad():
        both, alone = packer.pack([turns]), packer.pack([[turns[1]]])
        of_both, of_alone = last_hidden(both)[both.block[0] == 2], last_hidden(alone)[alone.block[0] == 1]
    assert torch.allclose(of_both, of_alone, atol=1e-4)


def test_packed_ids_are_what_the_processor_writes(tokenizer: Any) -> None:
    processor = lmm.build_processor(tokenizer)
    scene = sample_scene(np.random.default_rng(2))
    turn = language.caption(scene)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": turn.question}]},
        {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]},
    ]
    from PIL import Image

    text = processor.apply_chat_template(chat, tokenize=False)
    written = processor(images=Image.new("RGB", (50, 40)), text=text, return_tensors="pt")["input_ids"][0].tolist()
    packed = packing.Packer(tokenizer).pack([[turn]])
    assert packed.ids[0, : len(written)].tolist() == written


def test_orthogonalise_gives_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(optim.orthogonalise(torch.randn(3, 20, 50)))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.4
