"""Find the module of a decoder layer that mixes its tokens, and read what the kernels of linear layers get.

A decoder layer has rows if its tokens are mixed by a softmax, or by a linear kernel whose weights have a closed form
(`flmm_plugin.delta_rule`). transformers' linear layers call their kernels as functions of their own modules, whatever
implementation stands behind the name; which ones a layer calls is read from the names in its ``forward``.

Shapes: b batch, c heads, k key heads (c is a multiple), l tokens of the pass, d key size, v value size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_plugin.delta_rule import decayed_rows, delta_rule_rows
from flmm_plugin.errors import CaptureError
from flmm_plugin.heads.manifest import CROSS, LINEAR, SOFTMAX


@dataclass(frozen=True, eq=False)
class KernelInputs:
    """The inputs of a linear kernel, as the closed form of its rows takes them.

    Attributes:
        query: Queries, ``[b, k, l, d]``, neither normalised nor scaled: `prepared` does that to the asked rows alone.
        key: Keys, ``[b, k, l, d]`` float32, normalised.
        value: Values, ``[b, c, l, v]``, of the kernel's own type.
        beta: Strength of each token, ``[b, c, l]`` float32.
        gate: Logarithm of the decay, <= 0, ``[b, c, l]`` or ``[b, c, l, d]`` float32.
        closed_form: The function that computes rows, `delta_rule_rows` or `decayed_rows`.
        normalise: Whether the kernel makes queries and keys unit vectors.
        scale: Number that the queries are multiplied with.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    beta: Tensor
    gate: Tensor
    closed_form: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
    normalise: bool
    scale: float

    def prepared(self, query: Tensor) -> Tensor:
        """Make rows of `query` what the closed form takes, ``[b, k, t, d] -> [b, c, t, d]`` float32."""
        query = _unit(query.float()) if self.normalise else query.float()
        return (query * self.scale).repeat_interleave(self.beta.shape[1] // query.shape[1], dim=1)


def _delta_rule(call: Mapping[str, Any]) -> KernelInputs:
    query, key, value, beta, gate = (call[name].transpose(1, 2) for name in ("query", "key", "value", "beta", "g"))
    normalise = bool(call["use_qk_l2norm_in_kernel"])
    key = _unit(key.float()) if normalise else key.float()
    scale = query.shape[-1] ** -0.5
    return KernelInputs(query, key, value, beta.float(), gate.float(), delta_rule_rows, normalise, scale)


def _scan(call: Mapping[str, Any]) -> KernelInputs:
    """Mamba-2 over a sequence: ``hidden_states [b, l, c, v]``, ``B`` and ``C [b, l, k, d]``, ``dt [b, l, c]``."""
    step = _time_step(call).clamp(*call["dt_limit"])
    return _decayed(call["C"], call["B"], call["hidden_states"], step, call["A"])


def _scan_step(call: Mapping[str, Any]) -> KernelInputs:
    """Mamba-2 on a single token: as over a sequence, without its axis, and each number of a head repeated."""
    step = _time_step(call)[..., 0]
    rate = call["A"][:, 0, 0]
    query, key, value, step = (one[:, None] for one in (call["C"], call["B"], call["hidden_states"], step))
    return _decayed(query, key, value, step, rate)


def _decayed(query: Tensor, key: Tensor, value: Tensor, step: Tensor, rate: Tensor) -> KernelInputs:
    query, key, value, step = (one.transpose(1, 2) for one in (query, key, value, step.float()))
    gate = step * rate.float()[:, None]
    return KernelInputs(query, key.float(), value, step, gate, decayed_rows, normalise=False, scale=1.0)


def _time_step(call: Mapping[str, Any]) -> Tensor:
    step: Tensor = call["dt"]
    if call["dt_bias"] is not None:
        step = step + call["dt_bias"].to(step.dtype)
    return F.softplus(step) if call["dt_softplus"] else step


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().sum(dim=-1, keepdim=True) + 1e-6)


#: Name of a kernel -> how its arguments are read.
KERNELS: dict[str, Callable[[Mapping[str, Any]], KernelInputs]] = {
    "torch_chunk_gated_delta_rule": _delta_rule,
    "torch_recurrent_gated_delta_rule": _delta_rule,
    "chunk_kimi_delta_attention": _delta_rule,
    "recurrent_kimi_delta_attention": _delta_rule,
    "mamba2_chunk_scan": _scan,
    "mamba2_selective_state_update": _scan_step,
}


@dataclass(frozen=True, eq=False)
class TokenMixer:
    """The module that mixes the tokens of a decoder layer.

    Attributes:
        module: The module itself; None where the layer has no rows.
        kind: ``softmax``, ``cross``, ``linear``, or why the layer has no rows.
        heads: Rows of a token; 0 where the layer has none.
    """

    module: nn.Module | None
    kind: str
    heads: int = 0


def token_mixers(decoder: nn.Module) -> list[TokenMixer]:
    """Find what mixes the tokens in each layer of a decoder.

    Where some layers look at the picture beside the sequence (Mllama), the others see no picture and have no rows.

    Args:
        decoder: A language model's body: ``.layers``, ``.config``.
    """
    heads = int(cast("Any", decoder.config).num_attention_heads)
    found = [_token_mixer(layer, heads) for layer in cast("nn.ModuleList", decoder.layers)]
    if any(one.kind == CROSS for one in found):
        return [one if one.kind == CROSS else TokenMixer(None, "sees no picture") for one in found]
    return found


def _token_mixer(layer: nn.Module, heads: int) -> TokenMixer:
    """Find what mixes a layer's tokens; a softmax goes before a linear kernel beside it."""
    linear: TokenMixer | None = None
    others: list[str] = []
    for name, module in layer.named_children():
        called = called_names(module)
        kernels = any(one in called for one in KERNELS)
        if "ALL_ATTENTION_FUNCTIONS" in called or (name == "self_attn" and not kernels and not _mixes(called)):
            return TokenMixer(module, CROSS if name == "cross_attn" else SOFTMAX, heads)
        if kernels:
            own = getattr(module, "num_v_heads", None) or module.num_heads
            linear = TokenMixer(module, LINEAR, int(cast("Any", own)))
        elif _mixes(called):
            others.append(type(module).__name__)
    if linear is not None:
        return linear
    if others:
        return TokenMixer(None, f"{', '.join(others)} gives no weights from token to token for a whole head")
    return TokenMixer(None, "mixes no tokens")


def called_kernels(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return the kernels that a linear layer calls: the table in which each is looked up, and its name."""
    table = inspect.unwrap(type(module).forward).__globals__
    return [(table, name) for name in KERNELS if name in called_names(module)]


def read_kernel(name: str, kernel: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> KernelInputs:
    """Read the arguments of a call of a kernel."""
    call = inspect.signature(kernel).bind(*args, **given)
    call.apply_defaults()
    return KERNELS[name](call.arguments)


@dataclass(frozen=True, eq=False)
class Tokens:
    """The keys of a linear layer with all that its rows need, of tokens that follow each other.

    Attributes:
        first: Sequence slot of the first of them.
        key: Keys, ``[b, k, L, d]``.
        beta: Strength of each token, ``[b, c, L]``.
        gate: Decays, ``[b, c, L]`` or ``[b, c, L, d]``.
        norms: Norms of the values, ``[b, c, L]``.
    """

    first: int
    key: Tensor
    beta: Tensor
    gate: Tensor
    norms: Tensor

    @classmethod
    def of(cls, given: KernelInputs, start: int, first: int) -> Self:
        """Take the tokens of a pass that begins at slot ``start``, from slot ``first`` on."""
        skipped = max(0, first - start)
        norms = torch.linalg.vector_norm(given.value.float(), dim=-1)
        key, beta, gate, norms = (one[:, :, skipped:].detach() for one in (given.key, given.beta, given.gate, norms))
        return cls(start + skipped, key, beta, gate, norms)

    def followed_by(self, other: Self) -> Self:
        """Join the tokens of two passes; what the second one computes anew counts. Returns it alone where a gap is."""
        kept = other.first - self.first
        if not 0 <= kept <= self.key.shape[2]:
            return other
        pairs = ((self.key, other.key), (self.beta, other.beta), (self.gate, other.gate), (self.norms, other.norms))
        key, beta, gate, norms = (torch.cat([old[:, :, :kept], new], dim=2) for old, new in pairs)
        return type(self)(self.first, key, beta, gate, norms)

    def rows(self, given: KernelInputs, item: int, query: Tensor, at: Tensor) -> Tensor:
        """Compute rows of one batch item, ``[c, t, L]``, from its prepared queries ``[1, c, t, d]``."""
        key, beta, gate = (one[item : item + 1] for one in (self.key, self.beta, self.gate))
        return given.closed_form(query, key, beta, gate, at)[0]


# Names of the norm behind the last layer.
_FINAL_NORMS = ("norm", "embedding_norm", "final_layernorm", "norm_f")


def final_norm(decoder: nn.Module) -> nn.Module:
    """Return the norm behind a decoder's last layer.

    Raises:
        CaptureError: It has none under a known name.
    """
    for name in _FINAL_NORMS:
        if isinstance(getattr(decoder, name, None), nn.Module):
            return cast("nn.Module", getattr(decoder, name))
    raise CaptureError(
        f"{type(decoder).__name__} has no norm behind its last layer under a known name; it cannot be read"
    )


def called_names(module: nn.Module) -> frozenset[str]:
    """Return the names that a module's ``forward`` uses."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return frozenset() if code is None else frozenset(code.co_names)


# What layers that mix tokens in another way have in their `forward`: short convolutions, Mamba-1, lightning attention.
_OTHER_MIXERS = ("causal_conv1d_fn", "mamba_selective_scan", "selective_scan_fn", "slow_forward", "slope_rate")


def _mixes(called: frozenset[str]) -> bool:
    return any(name in called for name in _OTHER_MIXERS)
