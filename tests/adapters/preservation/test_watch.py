"""The watcher returns what the original returned, sees the outermost call, and takes hashes that tell things apart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from flmm_plugin.adapters.preservation.watch import (
    GenerateWatch,
    compare_logits,
    digest,
    logits_of,
    model_of,
    until_end,
)
from flmm_plugin.errors import BackboneUnsupported

MADE = torch.tensor([[9, 9, 5, 6, 2, 0], [9, 7, 5, 2, 0, 0]])


class Model:
    """Says the same always; its generate calls its language model's, as some families do."""

    generation_config = SimpleNamespace(eos_token_id=[2, 3])

    def __init__(self, inner: Any = None, made: Any = MADE) -> None:
        self.inner, self.made = inner, made


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Model]:
    """`Model` with a stand-in for transformers' generate."""

    def generate(self: Model, *args: Any, **kwargs: Any) -> Any:
        if self.made is None:
            raise RuntimeError("out of memory")
        if self.inner is not None:
            transformers.GenerationMixin.generate(self.inner, **kwargs)
        return self.made

    monkeypatch.setattr(transformers.GenerationMixin, "generate", generate)
    return Model


def ask(model: Model, *args: Any, **kwargs: Any) -> Any:
    return transformers.GenerationMixin.generate(model, *args, **kwargs)  # type: ignore[arg-type]


IDS = torch.tensor([[0, 8], [9, 7]])
MASK = torch.tensor([[0, 1], [1, 1]])
PIXELS = torch.arange(8.0).reshape(2, 1, 2, 2)


def test_rows_are_answers_without_what_the_batch_pads(watched: type[Model]) -> None:
    with GenerateWatch().watching() as watch:
        out = ask(watched(watched()), input_ids=IDS, attention_mask=MASK, pixel_values=PIXELS, max_new_tokens=4)
    assert out is MADE
    assert [row.ids for row in watch.rows] == [(5, 6, 2), (5, 2)], "one row per sequence of the outermost call"
    assert watch.rows[0].prompt == digest(IDS[0, 1:]), "of the prompt without its padding"
    assert watch.rows[1].prompt == digest(IDS[1])
    assert [row.asked for row in watch.rows] == [(8,), (9, 7)]
    assert [row.inputs for row in watch.rows] == [{"pixel_values": digest(one)} for one in PIXELS]
    assert watch.first is not None
    assert set(watch.first) == {"input_ids", "attention_mask", "pixel_values"}
    watch.clear()
    assert watch.rows == []
    assert watch.first is not None


def test_a_dict_a_positional_prompt_and_embeddings_are_understood(watched: type[Model]) -> None:
    with GenerateWatch().watching() as watch:
        ask(watched(made=SimpleNamespace(sequences=MADE)), IDS, eos_token_id=6)
        ask(watched(made=MADE[:, 2:]), inputs_embeds=torch.zeros(2, 3, 4))
    assert [row.ids for row in watch.rows] == [(5, 6), (5, 2, 0, 0), (5, 6, 2), (5, 2)]
    assert [row.prompt for row in watch.rows[2:]] == ["", ""]
    assert set(watch.rows[2].inputs) == {"inputs_embeds"}


def test_an_error_is_noted_and_passed_on(watched: type[Model]) -> None:
    before = transformers.GenerationMixin.generate
    with GenerateWatch().watching() as watch:
        with pytest.raises(RuntimeError):
            ask(watched(made=None), input_ids=IDS)
        assert watch.error == "RuntimeError: out of memory"
        ask(watched(), input_ids=IDS)
    assert len(watch.rows) == 2, "the watch goes on after an error"
    assert transformers.GenerationMixin.generate is before


def test_hashes_tell_bits_shapes_and_precisions_apart() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    bit = base.clone()
    bit.view(torch.int32)[1, 2] ^= 1
    others = [base, bit, base.reshape(3, 2), base.bfloat16(), -base]
    assert len({digest(one) for one in others}) == len(others)
    assert digest(base.t().contiguous().t()) == digest(base), "memory layout is no content"


def test_answers_end_with_their_end() -> None:
    assert until_end([5, 2, 7], set()) == (5, 2, 7)
    assert until_end([2, 2], {2}) == (2,)


def test_logits_are_equal_or_they_are_not(tmp_path: Path) -> None:
    left, right = tmp_path / "a.pt", tmp_path / "b.pt"
    logits = torch.zeros(1, 2, 3)
    torch.save(logits, left)
    assert compare_logits(left, right).compared == 0
    torch.save(logits.clone(), right)
    equal = compare_logits(left, right)
    assert (equal.compared, equal.differing) == (1, 0)
    logits[0, 1, 2] = 1e-38
    torch.save(logits, right)
    check = compare_logits(left, right)
    assert (check.compared, check.differing) == (1, 1)
    assert check.detail == "1 of 6 logits of [1, 2, 3] differ, by up to 1e-38"
    torch.save(logits.bfloat16(), right)
    assert compare_logits(left, right).differing == 1


def test_logits_come_from_what_the_model_takes() -> None:
    class Takes(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return SimpleNamespace(logits=input_ids * 2.0)

    logits, why = logits_of(Takes(), {"input_ids": IDS, "image_sizes": IDS})
    assert logits is not None
    assert torch.equal(logits, IDS * 2.0)
    assert logits_of(Takes(), None) == (None, "no call of generate was seen")
    logits, why = logits_of(Takes(), {"image_sizes": IDS})
    assert logits is None
    assert "TypeError" in why


def test_the_model_is_found_or_asked_for() -> None:
    module = torch.nn.Linear(1, 1)
    ours = SimpleNamespace(lmm=SimpleNamespace(backbone=SimpleNamespace(model=module)), _model=lambda: None)
    assert model_of(ours) is model_of(SimpleNamespace(_model=module)) is module
    with pytest.raises(BackboneUnsupported, match="--stock plain"):
        model_of(SimpleNamespace(model="gpt"))
