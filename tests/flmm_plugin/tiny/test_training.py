"""Packing changes nothing, a killed run goes on where it was, and the whole recipe runs from nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flmm_plugin.tiny import features, language, lmm, optim, packing, train_heads
from flmm_plugin.tiny.scenes import sample_scene
from flmm_plugin.tiny.train_sam import SamConfig

FAST_HEADS = train_heads.HeadsConfig(
    sam=SamConfig(steps=2, batch=2), scenes=3, decoder_steps=2, joint_steps=2, joint_batch=2
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return lmm.build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return train_heads.random_model(tokenizer)


def test_any_text_round_trips_and_world_words_are_single_tokens(tokenizer: Any) -> None:
    for text in ("A zebra, 3 cafés & <odd> text!", "small purple heart at the top left."):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]).strip() == text
    assert len(tokenizer("large orange triangle", add_special_tokens=False)["input_ids"]) == 3


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


def test_features_point_at_the_phrases(model: Any, tokenizer: Any) -> None:
    pair = (sample_scene(np.random.default_rng(3), min_things=2), np.random.default_rng(4))
    (item,) = features.extract(model, tokenizer, [pair], picture_size=64)
    n = len(item.where)
    assert item.attention.shape == (n, 36, lmm.GRID, lmm.GRID)
    assert set(item.where) == {"caption", "refer", "question"}
    assert item.keyword.any()
    assert not item.keyword.all()
    assert len(item.hidden) == n
    assert item.hidden[0].shape[1:] == (6, 192)


def test_orthogonalise_gives_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(optim.orthogonalise(torch.randn(3, 20, 50)))
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.4


@pytest.mark.parametrize("dies_in", ["mask decoder", "all heads"])
def test_killed_heads_resume_to_the_same_file(
    dies_in: str, model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_heads, "SAVE_EVERY", 1)

    def run(folder: Path) -> bytes:
        return train_heads.train(tmp_path / folder, FAST_HEADS, model, tokenizer, ("heads",)).read_bytes()

    whole = run(Path("whole"))
    original = train_heads.Stage.run

    def killed(self: train_heads.Stage, *args: Any) -> None:
        def dies(step: int) -> torch.Tensor:
            if step == 1:
                raise KeyboardInterrupt
            return self.loss(step)

        original(replace(self, loss=dies) if dies_in in self.name else self, *args)

    with monkeypatch.context() as once:
        once.setattr(train_heads.Stage, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(Path("killed"))
    assert run(Path("killed")) == whole
