"""Rows of every kind of decoder layer, on tiny random instances of the real classes."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.models.mllama.modeling_mllama import MllamaTextModel

from flmm_plugin import attention
from flmm_plugin.attention import AttentionCapture
from flmm_plugin.errors import CaptureError
from flmm_plugin.token_mixers import called_kernels, token_mixers

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
LATENT = {
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 16,
}
# What each type is here for: soft-capping, windows, sinks, chunks, a latent, keys of another layer.
SOFTMAX = {
    "gemma2": {"sliding_window": 8, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 8, "query_pre_attn_scalar": 8},
    "gpt_oss": {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "llama4_text": {"attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48},
    "deepseek_v3": {**LATENT, "q_lora_rank": 16, "n_routed_experts": 4, "n_group": 2, "topk_group": 1},
    "gemma4_text": {
        "sliding_window": 8,
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "global_head_dim": 8,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48},
}
HYBRID = {
    "qwen3_5_text": DELTA,
    "qwen3_next": {
        **DELTA,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "kimi_linear": {
        **LATENT,
        "q_lora_rank": None,
        "linear_num_heads": 4,
        "linear_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_experts": 2,
    },
    "nemotron_h": {
        "layer_types": ["mamba", "full_attention", "mlp", "mamba"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 16,
    },
}
LENGTH = 30
ROWS = [torch.arange(19, 30), torch.tensor([29, 12, 25])]
COLUMNS = [torch.arange(2, 18), torch.arange(3, 10)]


def decoder(name: str) -> nn.Module:
    try:
        config = AutoConfig.for_model(name, **{**BASE, **{**SOFTMAX, **HYBRID}[name]})
    except ValueError:
        pytest.skip(f"this transformers has no {name}: run it with the pinned one (constraints.txt)")
    torch.manual_seed(0)
    model: nn.Module = AutoModel.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 or "sinks" in key:
                parameter.normal_(0, 0.3)
    return model


def ids() -> Tensor:
    return torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def captured(model: nn.Module, *, columns: list[Tensor] = COLUMNS, **options: Any) -> AttentionCapture:
    capture = AttentionCapture(model, ROWS, columns, **options)
    with torch.no_grad(), capture.active():
        model(ids(), use_cache=False)
    return capture


@torch.no_grad()
def in_steps(model: nn.Module, capture: AttentionCapture, prompt: int = 19) -> Tensor:
    """Run the prompt, then one token after another; the last state."""
    with capture.active():
        out = model(ids()[:, :prompt], use_cache=True)
        for place in range(prompt, LENGTH):
            out = model(ids()[:, place : place + 1], past_key_values=out.past_key_values, use_cache=True)
    return out.last_hidden_state


def softmax_parts(model: nn.Module, found: Tensor) -> Tensor:
    """Of rows ``[t, m, c, k]``, those of softmax layers."""
    kinds = [one.kind for one in token_mixers(model) if one.heads]
    return found[:, [index for index, kind in enumerate(kinds) if kind == "softmax"]]


@pytest.mark.parametrize("name", [*SOFTMAX, *HYBRID])
def test_rows_of_softmax_layers_are_those_of_eager(name: str) -> None:
    model = decoder(name)
    with torch.no_grad():
        plain = model(ids(), output_attentions=True, use_cache=False)
    capture = captured(model)
    theirs = torch.stack([one for one in plain.attentions if one is not None])
    for item, (rows, columns) in enumerate(zip(ROWS, COLUMNS, strict=True)):
        got = softmax_parts(model, capture.attention(item))
        expected = theirs[:, item][:, :, rows][..., columns].permute(2, 0, 1, 3)
        assert (got - expected).abs().max() < 1e-5
        assert expected.max() > 0.1


@pytest.mark.parametrize("name", HYBRID)
def test_rows_of_linear_layers_times_values_are_the_kernel_s_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder(name)
    module = next(one.module for one in token_mixers(model) if one.kind == "linear")
    seen: list[tuple[Tensor, Tensor]] = []
    for table, kernel in called_kernels(module):

        def watched(*args: Any, stock: Any = table[kernel], **kwargs: Any) -> Any:
            result = stock(*args, **kwargs)
            output = result[0] if isinstance(result, tuple) else result
            if "D" in kwargs:
                seen.append((args[0], output - args[0] * kwargs["D"][:, None]))
            else:
                seen.append((args[2], output))
            return result

        watched.__signature__ = inspect.signature(table[kernel])  # type: ignore[attr-defined]
        monkeypatch.setitem(table, kernel, watched)
    capture = captured(model, columns=[torch.arange(LENGTH)] * 2)
    kinds = [one.kind for one in token_mixers(model) if one.heads]
    linear = [index for index, kind in enumerate(kinds) if kind == "linear"]
    assert len(seen) == len(linear) == 2
    for index, (value, output) in zip(linear, seen, strict=True):
        for item, rows in enumerate(ROWS):
            got = capture.attention(item)[:, index]
            assert (torch.einsum("tck,kcd->tcd", got, value[item]) - output[item, rows]).abs().max() < 2e-5
            assert got.min() < -1e-3  # signed
            assert output[item].abs().max() > 0.1


@pytest.mark.parametrize("name", ["gemma2", "gemma4_text", "llama4_text", "qwen3_5_text", "kimi_linear"])
def test_rows_of_a_cached_generation_are_those_of_a_whole_pass(name: str) -> None:
    model = decoder(name)
    capture = AttentionCapture(model, ROWS, COLUMNS)
    last = in_steps(model, capture)
    whole = captured(model)
    for item in range(2):
        assert (capture.attention(item) - whole.attention(item)).abs().max() < 2e-5
    torch.testing.assert_close(last[:, 0], whole_states(model)[:, -1], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def whole_states(model: nn.Module) -> Tensor:
    return model(ids(), use_cache=False).last_hidden_state


@pytest.mark.parametrize("name", HYBRID)
def test_a_hybrid_runs_unchanged_and_nothing_stays_behind(name: str) -> None:
    model = decoder(name)
    mixers = [one.module for one in token_mixers(model) if one.kind == "linear"]
    tables = [(table, kernel, table[kernel]) for table, kernel in called_kernels(mixers[0])]
    plain = whole_states(model)
    capture = AttentionCapture(model, ROWS, COLUMNS)
    with capture.active():
        assert all(table[kernel] is not stock for table, kernel, stock in tables)
        assert torch.equal(whole_states(model), plain)
    assert all(table[kernel] is stock for table, kernel, stock in tables)
    assert not attention._INSTALLED
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_only_keys_that_later_rows_need_are_kept() -> None:
    model = decoder("qwen3_5_text")
    capture = AttentionCapture(model, [torch.tensor([29])] * 2, COLUMNS)
    with torch.no_grad(), capture.active():
        out = model(ids()[:, :20], use_cache=True)
        assert {tokens.first for tokens in capture._tokens.values()} == {2}
        assert {tokens.key.shape[2] for tokens in capture._tokens.values()} == {18}
        model(ids()[:, 20:], past_key_values=out.past_key_values, use_cache=True)
        assert not capture._tokens


def test_a_picture_that_went_into_the_state_before_cannot_be_read() -> None:
    model = decoder("qwen3_5_text")
    with torch.no_grad():
        out = model(ids()[:, :19], use_cache=True)
    capture = AttentionCapture(model, [torch.arange(19, 30)] * 2, COLUMNS)
    with torch.no_grad(), pytest.raises(CaptureError, match="before the capture"), capture.active():
        model(ids()[:, 19:], past_key_values=out.past_key_values, use_cache=True)


def test_layers_without_rows_are_named() -> None:
    kinds = [one.kind for one in token_mixers(decoder("lfm2"))]
    assert kinds[1::2] == ["softmax", "softmax"]
    assert all("Lfm2ShortConv" in kind for kind in kinds[::2])


def test_layers_that_differ_in_heads_give_each_map_alone() -> None:
    config = AutoConfig.for_model("qwen3_5_text", **{**BASE, **DELTA, "linear_num_value_heads": 6})
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    capture = captured(model)
    assert capture.attention(0).shape == (len(ROWS[0]), 2 * (6 + 4), 1, len(COLUMNS[0]))


@pytest.mark.parametrize("name", ["gemma3_text", "deepseek_v3", "qwen3_5_text"])
def test_weighted_rows_are_rows_times_the_norms_of_values(name: str) -> None:
    model = decoder(name)
    plain, weighted = captured(model), captured(model, weighted=True)
    ratio = weighted.attention(1) / plain.attention(1)
    # One factor per column and head, whatever the row.
    seen = plain.attention(1).abs() > 1e-4
    spread = torch.where(seen, ratio, float("nan"))
    middle = spread.nanmedian(dim=0, keepdim=True).values
    assert (((spread - middle) / middle).abs() < 1e-3)[seen].all()
    assert ratio[seen].min() > 0


def test_rows_of_cross_attention_are_those_of_eager() -> None:
    config = AutoConfig.for_model(
        "mllama_text_model", **{**BASE, "cross_attention_layers": [1, 3], "rope_parameters": {"rope_type": "default"}}
    )
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = MllamaTextModel(config).eval()
    kinds = [one.kind for one in token_mixers(model)]
    assert kinds == ["sees no picture", "cross"] * 2
    picture = torch.randn(2, 12, 32)
    seen = torch.zeros(2, 1, LENGTH, 12).masked_fill(torch.arange(12) == 11, torch.finfo(torch.float32).min)
    call = {
        "input_ids": ids(),
        "cross_attention_states": picture,
        "cross_attention_mask": seen,
        "full_text_row_masked_out_mask": torch.ones(2, 1, LENGTH, 1),
        "use_cache": False,
    }
    kept: list[Tensor] = []
    for layer in model.layers[1::2]:
        layer.cross_attn.register_forward_hook(lambda module, args, output: kept.append(output[1]))
    columns = [torch.arange(12), torch.arange(4, 9)]
    capture = AttentionCapture(model, ROWS, columns)
    with torch.no_grad(), capture.active():
        model(**call)
    theirs = torch.stack(kept)
    for item, (rows, places) in enumerate(zip(ROWS, columns, strict=True)):
        expected = theirs[:, item][:, :, rows][..., places].permute(2, 0, 1, 3)
        assert (capture.attention(item) - expected).abs().max() < 1e-5
        assert expected.max() > 0.05


@pytest.mark.parametrize("merge", ["mean", "max"])
def test_rows_are_merged_as_they_are_kept_signs_and_all(merge: str) -> None:
    model = decoder("qwen3_5_text")
    sizes = [[2, 5, 4], [3]]
    merged = captured(model, sizes=sizes, merge=merge)
    in_parts = AttentionCapture(model, ROWS, COLUMNS, sizes=sizes, merge=merge)
    in_steps(model, in_parts)
    for item, kept in enumerate(captured(model).attention(item) for item in range(2)):
        parts = kept.split(sizes[item])
        expected = torch.stack([one.mean(0) if merge == "mean" else one.amax(0) for one in parts])
        assert expected.min() < 0
        for capture in (merged, in_parts):
            assert (capture.attention(item) - expected).abs().max() < 1e-5
