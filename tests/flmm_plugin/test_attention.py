"""Captured rows are eager's rows; the model does not notice."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import StaticLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flmm_plugin import attention, softmax_rows
from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones.base import EncodedChat
from flmm_plugin.errors import CaptureError

Load = Callable[..., Any]
QUESTIONS = ("What is in the image?", "Where?", "the dog and the cat sit on a red sofa near the window. What?")


def question(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def encode(backbone: Any, noise_image: Load, batch: int = 1) -> EncodedChat:
    """Chats of different length, so that all but the longest are padded."""
    chats = [question(text) for text in QUESTIONS[:batch]]
    return backbone.encode(chats, [[noise_image(seed=index)] for index in range(batch)])


def text_slots(encoded: EncodedChat) -> list[Tensor]:
    """Every slot behind the image tokens, in reverse: the order asked for is the order given back."""
    return [torch.arange(int(one[0].slots.max()) + 1, encoded.length).flip(0) for one in encoded.image_tokens]


def columns(encoded: EncodedChat) -> list[Tensor]:
    return [one[0].slots for one in encoded.image_tokens]


def capture_of(backbone: Any, encoded: EncodedChat) -> AttentionCapture:
    return AttentionCapture(backbone.decoder, text_slots(encoded), columns(encoded))


@torch.no_grad()
def eager(load_llava: Load, name: str, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Rows [m, b, c, l, L] and hidden states [m, b, l, d] of the same weights on the eager kernel."""
    out = load_llava(name, attn_implementation="eager").model(
        **inputs, output_attentions=True, output_hidden_states=True
    )
    return torch.stack(out.attentions), torch.stack(out.hidden_states[1:])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["mha", "gqa"])
def test_rows_and_hidden_states_are_those_of_eager(load_llava: Load, noise_image: Load, name: str, batch: int) -> None:
    backbone = load_llava(name)
    encoded = encode(backbone, noise_image, batch)
    capture = capture_of(backbone, encoded)
    with torch.no_grad(), capture.active():
        backbone.model(**encoded.inputs)
    rows, hidden = eager(load_llava, name, encoded.inputs)
    for item, slots in enumerate(text_slots(encoded)):
        image = encoded.image_tokens[item][0].slots
        expected = rows[:, item][:, :, slots][..., image].permute(2, 0, 1, 3)
        got = capture.attention(item)
        assert got.shape == (len(slots), 3, 4, 16)
        assert (got - expected).abs().max() < 1e-5
        assert expected.max() > 0.05  # a flat expectation would prove little
        torch.testing.assert_close(capture.hidden(item), hidden[:, item, slots].transpose(0, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_logits_are_bit_identical(load_llava: Load, noise_image: Load, dtype: str, kernel: str) -> None:
    if kernel == "eager" and not hasattr(ALL_ATTENTION_FUNCTIONS, "get_interface"):
        pytest.skip("this transformers calls its eager kernel without looking it up: a capture of it says so")
    backbone = load_llava("gqa", dtype=dtype, attn_implementation=kernel)
    encoded = encode(backbone, noise_image, 2)
    capture = capture_of(backbone, encoded)
    with torch.no_grad():
        plain = backbone.model(**encoded.inputs).logits
        with capture.active():
            captured = backbone.model(**encoded.inputs).logits
    assert torch.equal(plain, captured)
    assert capture.attention(1).dtype == torch.float32
    assert capture.hidden(1).dtype == backbone.dtype


GENERATE = {
    "greedy": {"do_sample": False},
    "sample": {"do_sample": True, "temperature": 1.3, "top_k": 50},
    "static": {"do_sample": False, "cache_implementation": "static"},
    "no_cache": {"do_sample": False, "use_cache": False},
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("how", GENERATE)
def test_generated_ids_are_those_of_the_plain_model(load_llava: Load, noise_image: Load, how: str, batch: int) -> None:
    if how == "static" and batch > 1 and ".any(" in inspect.getsource(StaticLayer.get_seq_length):
        pytest.skip("this transformers takes padding, whose first keys are zero, for free places of a static cache")
    backbone = load_llava("gqa")
    encoded = encode(backbone, noise_image, batch)
    options = {"max_new_tokens": 7, "eos_token_id": -1, "pad_token_id": 0, **GENERATE[how]}
    torch.manual_seed(3)
    plain = backbone.model.generate(**encoded.inputs, **options)
    # All rows but those of the last token, which generate() never feeds to the model.
    slots = [torch.arange(int(one.max()) + 1, plain.shape[1] - 1) for one in columns(encoded)]
    capture = AttentionCapture(backbone.decoder, slots, columns(encoded))
    torch.manual_seed(3)
    with capture.active():
        captured = backbone.model.generate(**encoded.inputs, **options)
    assert torch.equal(plain, captured)
    grown = torch.ones_like(plain)
    grown[:, : encoded.length] = encoded.inputs["attention_mask"]
    positions = (grown.cumsum(-1) - 1).clamp(min=0)
    whole = {**encoded.inputs, "input_ids": plain, "attention_mask": grown, "position_ids": positions}
    rows, _ = eager(load_llava, "gqa", whole)
    for item in range(batch):
        expected = rows[:, item][:, :, slots[item]][..., columns(encoded)[item]].permute(2, 0, 1, 3)
        assert (capture.attention(item) - expected).abs().max() < 1e-5


def test_beam_search_is_not_disturbed(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    encoded = encode(backbone, noise_image)
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "pad_token_id": 0}
    plain = backbone.model.generate(**encoded.inputs, **options)
    capture = AttentionCapture(backbone.decoder, text_slots(encoded) * 3, columns(encoded) * 3)
    with capture.active():
        captured = backbone.model.generate(**encoded.inputs, **options)
    assert torch.equal(plain, captured)
    rows, _ = eager(load_llava, "mha", encoded.inputs)
    expected = rows[:, 0][:, :, text_slots(encoded)[0]][..., columns(encoded)[0]].permute(2, 0, 1, 3)
    assert (capture.attention(2) - expected).abs().max() < 1e-5  # every beam begins with the prompt


def test_rows_in_pieces_are_the_same_rows(load_llava: Load, noise_image: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_llava("gqa")
    encoded = encode(backbone, noise_image)
    whole, pieces = capture_of(backbone, encoded), capture_of(backbone, encoded)
    with torch.no_grad(), whole.active():
        backbone.forward_body(encoded.inputs)
    monkeypatch.setattr(attention, "_SCORE_ELEMENTS", 4 * encoded.length * 2)
    with torch.no_grad(), pieces.active():
        backbone.forward_body(encoded.inputs)
    torch.testing.assert_close(pieces.attention(0), whole.attention(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("elements", [1 << 22, 1])
@pytest.mark.parametrize("merge", ["mean", "max"])
def test_merged_rows_are_the_rows_merged(
    load_llava: Load, noise_image: Load, monkeypatch: pytest.MonkeyPatch, merge: str, elements: int
) -> None:
    """Groups of one, two and three rows, read at once or row by row."""
    backbone = load_llava("gqa")
    encoded = encode(backbone, noise_image, 2)
    slots = [one[:8] for one in text_slots(encoded)]
    sizes = [[1, 3, 3, 1], [2, 3, 3]]
    single = AttentionCapture(backbone.decoder, slots, columns(encoded))
    merged = AttentionCapture(backbone.decoder, slots, columns(encoded), sizes=sizes, merge=merge)
    monkeypatch.setattr(attention, "_SCORE_ELEMENTS", elements)
    with torch.no_grad(), single.active(), merged.active():
        backbone.forward_body(encoded.inputs)
    for item in range(2):
        rows = single.attention(item).split(sizes[item])
        expected = torch.stack([one.mean(dim=0) if merge == "mean" else one.amax(dim=0) for one in rows])
        assert (merged.attention(item) - expected).abs().max() < 1e-6
        assert torch.equal(merged.hidden(item), single.hidden(item))


def test_merged_rows_count_once(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    encoded = encode(backbone, noise_image)
    slots, image = [text_slots(encoded)[0][:2]], columns(encoded)
    with pytest.raises(CaptureError, match="groups"):
        AttentionCapture(backbone.decoder, slots, image, sizes=[[3]])
    capture = AttentionCapture(backbone.decoder, slots, image, sizes=[[2]])
    with torch.no_grad(), capture.active():
        backbone.forward_body(encoded.inputs)
        with pytest.raises(CaptureError, match="twice"):
            backbone.forward_body(encoded.inputs)


def test_no_columns_cost_no_rows(load_llava: Load, noise_image: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load_llava("mha")
    encoded = encode(backbone, noise_image)
    monkeypatch.setattr(softmax_rows, "scores", lambda *args: pytest.fail("scores were computed for no column"))
    capture = AttentionCapture(backbone.decoder, text_slots(encoded), [torch.tensor([], dtype=torch.long)])
    with torch.no_grad(), capture.active():
        backbone.forward_body(encoded.inputs)
    assert capture.attention(0).shape[-1] == 0
    assert capture.hidden(0).abs().sum() > 0


# --- nothing is left behind ----------------------------------------------------------------------------------------


def hooks_of(backbone: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in backbone.model.modules())


def test_wrapper_and_hooks_are_gone_afterwards_and_after_an_exception(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    encoded = encode(backbone, noise_image)
    stock, hooks = ALL_ATTENTION_FUNCTIONS["sdpa"], hooks_of(backbone)

    def broken() -> None:
        with capture_of(backbone, encoded).active():
            assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not stock
            assert hooks_of(backbone) > hooks
            raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        broken()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    assert hooks_of(backbone) == hooks
    assert attention._ACTIVE.get() == ()
    assert attention._INSTALLED == {}
    assert backbone.decoder.config._attn_implementation == "sdpa"


def test_a_local_override_of_somebody_else_is_put_back(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    encoded = encode(backbone, noise_image)
    calls = []
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def theirs(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return stock(*args, **kwargs)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
    try:
        with torch.no_grad(), capture_of(backbone, encoded).active():
            backbone.forward_body(encoded.inputs)
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is theirs
        assert len(calls) >= 3
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def test_captures_nest_and_other_threads_are_left_alone(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    encoded, other = encode(backbone, noise_image), encode(backbone, noise_image, 3)
    outer, inner = capture_of(backbone, encoded), capture_of(backbone, encoded)
    elsewhere: list[Tensor] = []

    def run() -> None:
        with torch.no_grad():
            elsewhere.append(backbone.model(**other.inputs).logits)

    with torch.no_grad(), outer.active():
        thread = threading.Thread(target=run)
        thread.start()  # a batch of three: captured by mistake, it would be refused
        thread.join()
        with inner.active():
            backbone.forward_body(encoded.inputs)
    assert torch.equal(inner.attention(0), outer.attention(0))
    with torch.no_grad():
        assert torch.equal(elsewhere[0], backbone.model(**other.inputs).logits)


# --- what cannot be read is refused --------------------------------------------------------------------------------


def test_a_layer_that_delivers_nothing_is_named(load_llava: Load, noise_image: Load) -> None:
    backbone = copy.deepcopy(load_llava("mha"))
    encoded = encode(backbone, noise_image)
    backbone.decoder.layers[1].self_attn.forward = lambda hidden_states, **kwargs: (hidden_states, None)
    capture = capture_of(backbone, encoded)
    with pytest.raises(CaptureError, match="layer 1 of LlamaModel delivered no attention"), capture.active():
        backbone.forward_body(encoded.inputs)


def test_slots_that_were_not_fed_are_named(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    encoded = encode(backbone, noise_image)
    capture = AttentionCapture(backbone.decoder, [torch.tensor([3, 999])], columns(encoded))
    with pytest.raises(CaptureError, match=r"slots \[999\]"), torch.no_grad(), capture.active():
        backbone.forward_body(encoded.inputs)


def test_reading_before_running_says_what_to_do(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    capture = capture_of(backbone, encode(backbone, noise_image))
    with pytest.raises(CaptureError, match=r"capture\.active"):
        capture.attention(0)


def test_another_batch_size_is_refused(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    capture = capture_of(backbone, encode(backbone, noise_image))
    with pytest.raises(CaptureError, match="batch of 2"), torch.no_grad(), capture.active():
        backbone.forward_body(encode(backbone, noise_image, 2).inputs)
    with pytest.raises(CaptureError, match="columns for 0"):
        AttentionCapture(backbone.decoder, [torch.tensor([1])], [])


def test_attention_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(CaptureError, match="paged cache"):
        softmax_rows.check_supported(None, {"cache": object()})
    with pytest.raises(CaptureError, match="sdpa"):
        softmax_rows.check_supported(object(), {})


# --- masks of other kernels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("past", "window"), [(0, None), (4, None), (4, 3)])
def test_flash_style_masks_hide_what_a_four_dimensional_mask_hides(past: int, window: int | None) -> None:
    length = 9
    rows = torch.tensor([[0, 2, 4]])
    scores = torch.randn(1, 2, 3, length)
    padding = torch.ones(1, past + 5, dtype=torch.long)
    padding[0, :2] = 0
    slots, positions = torch.arange(length), (past + torch.arange(5))[:, None]
    visible = (slots <= positions) & torch.nn.functional.pad(padding[0].bool(), (0, length - padding.shape[1]))
    if window:
        visible &= slots > positions - window
    additive = torch.zeros(1, 1, 5, length).masked_fill(~visible, float("-inf"))

    def masked(mask: Tensor, causal: bool, window: int | None) -> Tensor:
        return scores + softmax_rows.rows_of_mask(mask, rows, past, length, causal=causal, window=window)

    flash = masked(padding, True, window)
    assert torch.equal(flash, masked(visible[None, None], False, None))
    assert torch.equal(flash, masked(additive, False, None))
    assert torch.isinf(flash).any()
    assert torch.isfinite(flash).any()


def test_bidirectional_attention_without_a_mask_sees_everything() -> None:
    mask = softmax_rows.rows_of_mask(None, torch.arange(2)[None], 0, 4, causal=False, window=None)
    assert not mask.any()


def test_a_model_that_accelerate_offloads_gives_the_same_rows(load_llava: Load, noise_image: Load) -> None:
    """Weights are placeholders between calls and the modules' forward is replaced: the seam must not care."""
    accelerate = pytest.importorskip("accelerate")
    plain = load_llava("gqa")
    encoded = encode(plain, noise_image, 2)
    expected = capture_of(plain, encoded)
    with torch.no_grad(), expected.active():
        plain.forward_body(encoded.inputs)
    split = copy.deepcopy(plain)
    accelerate.cpu_offload(split.model, execution_device=torch.device("cpu"))
    assert next(split.decoder.parameters()).device.type == "meta"
    assert split.device.type == "cpu"
    assert split.output_device.type == "cpu"
    again = encode(split, noise_image, 2)
    capture = capture_of(split, again)
    with torch.no_grad(), capture.active():
        split.forward_body(again.inputs)
    for item in range(2):
        assert torch.equal(capture.attention(item), expected.attention(item))
        assert torch.equal(capture.hidden(item), expected.hidden(item))
