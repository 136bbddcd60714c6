"""Reading a finished answer back from its cache gives what a full pass gives, and leaves the cache alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache

from flmm_plugin import capture
from flmm_plugin.attention import AttentionCapture
from flmm_plugin.capture import capture_alternatives, prompt_cache, read_answer, read_sequence
from flmm_plugin.errors import CaptureError
from flmm_plugin.passages import Passage

Load = Callable[..., Any]


@pytest.fixture
def chats(load_llava: Load, noise_image: Load) -> tuple[Any, Any, list[torch.Tensor]]:
    """Backbone, three chats of different length, columns of their image tokens."""
    backbone = load_llava("gqa")
    texts = ["What?", "What is in the image?", "the dog and the cat sit on a red sofa. Where?"]
    messages = [[{"role": "user", "content": f"<image>\n{text}"}] for text in texts]
    encoded = backbone.encode(messages, [[noise_image(seed=index)] for index in range(3)])
    return backbone, encoded, [one[0].slots for one in encoded.image_tokens]


def passes(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequence lengths of the forward passes from here on."""
    lengths: list[int] = []
    forward = backbone.forward_body

    def counted(inputs: Any, **options: Any) -> Any:
        lengths.append(inputs["input_ids"].shape[1])
        return forward(inputs, **options)

    monkeypatch.setattr(backbone, "forward_body", counted)
    return lengths


def assert_same(one: Any, two: Any, items: int) -> None:
    for item in range(items):
        assert (one.attention(item) - two.attention(item)).abs().max() < 1e-5
        torch.testing.assert_close(one.hidden(item), two.hidden(item), rtol=1e-4, atol=1e-4)
        assert two.attention(item).max() > 0.01


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}, {"do_sample": True}])
def test_tail_equals_full(chats: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, encoded, columns = chats
    torch.manual_seed(1)
    generated = backbone.generate(encoded, **{"max_new_tokens": 6, "do_sample": False, **options})
    rows = [[0, 2], [length - 1 for length in generated.lengths[1:2]], list(range(generated.lengths[2]))]
    lengths = passes(backbone, monkeypatch)
    tail = read_answer(backbone, encoded, generated, rows, columns)
    full = read_answer(backbone, encoded, generated, rows, columns, tail=False)
    assert_same(tail, full, 3)
    longest = max(generated.lengths)
    assert lengths == [longest, encoded.length + longest]


def test_answers_of_different_length(chats: Any) -> None:
    backbone, encoded, columns = chats
    free = backbone.generate(encoded, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    stop = free.answer_ids(0)[1]
    ended = backbone.generate(encoded, max_new_tokens=6, do_sample=False, eos_token_id=stop)
    assert len(set(ended.lengths)) > 1
    rows = [list(range(length)) for length in ended.lengths]
    tail = read_answer(backbone, encoded, ended, rows, columns)
    assert_same(tail, read_answer(backbone, encoded, ended, rows, columns, tail=False), 3)
    # Each alone, without any padding, is the same again.
    alone = backbone.encode([[{"role": "user", "content": "<image>\nWhat?"}]], [[_picture(0)]])
    written = alone.extended([ended.answer_ids(0)], backbone.pad_id)
    slots = torch.arange(alone.length, written.length)
    single = read_sequence(backbone, written, [slots], [alone.image_tokens[0][0].slots])
    assert (single.attention(0) - tail.attention(0)).abs().max() < 1e-5


def _picture(seed: int) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (60, 100, 3), dtype=np.uint8))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"use_cache": False}])
def test_without_a_usable_cache_the_whole_sequence_is_run(
    chats: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, encoded, columns = chats
    generated = backbone.generate(encoded, max_new_tokens=4, do_sample=False, **options)
    lengths = passes(backbone, monkeypatch)
    capture = read_answer(backbone, encoded, generated, [[0], [1], [2]], columns)
    assert lengths == [encoded.length + max(generated.lengths)]
    assert capture.attention(2).shape == (1, 3, 4, 16)


def test_the_chat_s_cache_is_left_as_it_is(chats: Any) -> None:
    backbone, encoded, columns = chats
    generated = backbone.generate(encoded, max_new_tokens=5, do_sample=False)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in generated.past_key_values.layers]
    read_answer(backbone, encoded, generated, [[0], [1], [2]], columns)
    for (keys, values), layer in zip(before, generated.past_key_values.layers, strict=True):
        assert torch.equal(keys, layer.keys)
        assert torch.equal(values, layer.values)


def test_continuations_share_one_prompt(load_llava: Load, noise_image: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_llava("gqa")
    encoded = backbone.encode([[{"role": "user", "content": "<image>\nDescribe."}]], [[noise_image()]])
    texts, rows = [[70, 71, 72, 9], [80, 9], [90, 91, 9]], [[0, 1, 2], [0], [1, 0]]
    passages = [Passage(text, [[one] for one in row], [("", None)]) for text, row in zip(texts, rows, strict=True)]
    lengths = passes(backbone, monkeypatch)
    shared = list(capture_alternatives(backbone, encoded, passages, "mean", at_once=2))
    assert lengths == [encoded.length, 4, 3]
    monkeypatch.setattr(capture, "prompt_cache", lambda *args, **options: None)
    apart = list(capture_alternatives(backbone, encoded, passages, "mean"))
    assert len(shared) == len(apart) == 3
    for row, one, two in zip(rows, shared, apart, strict=True):
        assert one.rows.shape == (len(row), 3, 4, 16)
        assert (one.rows - two.rows).abs().max() < 1e-5
        torch.testing.assert_close(one.hidden, two.hidden, rtol=1e-4, atol=1e-4)
    assert (shared[0].rows - shared[1].rows).abs().max() > 1e-3


def test_caches_that_hold_no_plain_keys_are_not_used(load_llava: Load) -> None:
    assert prompt_cache(None, 3) is None
    assert prompt_cache(DynamicCache(), 3) is None
    cache = DynamicCache()
    cache.update(torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 4), 0)
    assert prompt_cache(cache, 6) is None  # shorter than the prompt
    copy = prompt_cache(cache, 4, repeats=3)
    assert copy is not None
    assert copy.layers[0].keys.shape == (3, 2, 4, 4)
    config = load_llava("mha").decoder.config
    sliding = type(config)(**{**config.to_dict(), "layer_types": ["sliding_attention"] * 3, "sliding_window": 4})
    assert prompt_cache(DynamicCache(config=sliding), 1) is None


def test_an_answer_with_an_image_placeholder_needs_the_cache(chats: Any) -> None:
    backbone, encoded, columns = chats
    generated = backbone.generate(encoded, max_new_tokens=4, do_sample=False, eos_token_id=-1)
    generated.sequences[0, encoded.length] = backbone.image_token_id
    assert read_answer(backbone, encoded, generated, [[1], [1], [1]], columns).attention(0).shape[0] == 1
    with pytest.raises(CaptureError, match="use_cache=True"):
        read_answer(backbone, encoded, generated, [[1], [1], [1]], columns, tail=False)


def test_heads_for_values_get_rows_times_norms_of_values(chats: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, encoded, columns = chats
    rows = [torch.tensor([int(one.max()) + 2]) for one in columns]
    plain = read_sequence(backbone, encoded, rows, columns)
    monkeypatch.setattr(backbone, "rows", "value")
    weighted = read_sequence(backbone, encoded, rows, columns)
    direct = AttentionCapture(backbone.decoder, rows, columns, weighted=True)
    inputs = encoded.grounding_inputs
    with direct.active():
        backbone.forward_body({**inputs, "position_ids": backbone.positions(inputs)})
    for item in range(3):
        assert torch.equal(weighted.attention(item), direct.attention(item))
        assert not torch.allclose(weighted.attention(item), plain.attention(item))
