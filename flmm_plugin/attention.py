"""Word-image attention of a model that goes on running its stock attention.

The seam: while a capture is active, the attention function that the model uses is wrapped *under its own name* in
transformers' attention interface. The wrapper calls the stock function first and returns its result unchanged; for the
decoder layers of the captured model it then computes, from the very queries and keys that the stock kernel got, the
softmax rows of the asked positions and keeps their image columns. A new name would not do: flash attention passes the
name on as the kernel to import, and masks are not made for names that the mask registry does not know. Outside a
capture the interface holds the stock function itself.

Hidden states come from output hooks on the decoder layers and its final norm, the number of cached tokens from a hook
before the decoder (key length minus query length is not it with a static cache).

Memory: rows cost layers * heads * columns * 4 bytes per asked position; an L x L matrix never exists.

Shapes: b batch, t asked positions, l query length, L key length, m layers, c heads, k key-value heads, d head or hidden
    size.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flmm_plugin.errors import CaptureError

AttentionFunction = Callable[..., Any]

# The captures of this thread (and of this async task): another thread that runs the same model meanwhile is neither
# captured nor slowed down.
_ACTIVE: ContextVar[tuple[AttentionCapture, ...]] = ContextVar("flmm_active_captures", default=())

# Scores of at most this many row x key x head elements exist at a time (float32: 64 MiB).
_SCORE_ELEMENTS = 1 << 24


class AttentionCapture:
    """Attention rows and hidden states of asked positions, beside a stock forward pass.

    Example::

        capture = AttentionCapture(model.get_decoder(), rows=[text_slots], columns=[image_slots])
        with torch.no_grad(), capture.active():
            model(**inputs)
        maps = capture.attention(0)          # [t, m, c, columns]

    Args:
        decoder: The language model's body: ``.layers[i].self_attn``, ``.norm``, ``.config``.
        rows: One tensor per batch item: absolute sequence slots whose rows are wanted. Slots count from 0 and include
            left padding and tokens that are already in the cache.
        columns: One tensor per batch item: slots of its image tokens. Empty: no rows are computed for that item.
        hidden_states: Whether to keep the hidden states of the asked positions too.

    Several passes (prefill, then decoding steps) fill one capture; when a slot is computed twice the last one counts.
    """

    def __init__(
        self, decoder: nn.Module, rows: Sequence[Tensor], columns: Sequence[Tensor], hidden_states: bool = True
    ) -> None:
        if len(rows) != len(columns):
            raise CaptureError(
                f"rows for {len(rows)} batch items but columns for {len(columns)}; give one each per item"
            )
        self._decoder = decoder
        self._layers = cast("list[nn.Module]", list(cast("nn.ModuleList", decoder.layers)))
        self._layer_of = {id(layer.self_attn): index for index, layer in enumerate(self._layers)}
        # Positions stay on the CPU: choosing among them must not wait for the device.
        self._rows = [row.detach().to("cpu", torch.long) for row in rows]
        self._columns = [column.detach().to("cpu", torch.long) for column in columns]
        self._with_hidden = hidden_states
        self._attention: dict[tuple[int, int], _Rows] = {}
        self._hidden: dict[tuple[int, int], _Rows] = {}
        self._past = 0

    @contextmanager
    def active(self) -> Iterator[AttentionCapture]:
        """Capture what the model computes in this block, in this thread.

        Raises:
            CaptureError: At the end of the block, when a layer delivered nothing for some asked position. Not raised
                over an exception of the block itself.
        """
        self._attention, self._hidden = {}, {}
        hooks = [self._decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)]
        if self._with_hidden:
            # The last layer's states are read after the final norm, as `output_hidden_states` gives them.
            outputs: list[nn.Module] = [*self._layers[:-1], cast("nn.Module", self._decoder.norm)]
            hooks += [module.register_forward_hook(self._hidden_hook(index)) for index, module in enumerate(outputs)]
        token = _ACTIVE.set((*_ACTIVE.get(), self))
        try:
            with _wrapped(attention_name(self._decoder)):
                yield self
        finally:
            _ACTIVE.reset(token)
            for hook in hooks:
                hook.remove()
        self._check_complete()

    def attention(self, item: int) -> Tensor:
        """Rows of one batch item.

        Returns:
            ``[t, m, c, columns]`` float32, >= 0, rows in the order asked for; softmax over *all* keys, so that a row
            sums to the share of attention that the image got. On the device of the last layer.
        """
        return self._gathered(self._attention, item)

    def hidden(self, item: int) -> Tensor:
        """Outputs of every decoder layer at the asked positions, ``[t, m, d]``; the last one after the final norm."""
        if not self._with_hidden:
            raise CaptureError("this capture kept no hidden states; make it with hidden_states=True")
        return self._gathered(self._hidden, item)

    def _gathered(self, store: dict[tuple[int, int], _Rows], item: int) -> Tensor:
        parts = [store[index, item].values for index in range(len(self._layers)) if (index, item) in store]
        if len(parts) != len(self._layers):
            raise CaptureError("nothing was captured yet; run the model inside `with capture.active():` first")
        device = parts[-1].device
        return torch.stack([part.to(device) for part in parts], dim=1)

    def _check_complete(self) -> None:
        stores = [("attention", self._attention)] + ([("hidden states", self._hidden)] if self._with_hidden else [])
        for what, store in stores:
            for item, rows in enumerate(self._rows):
                for index in range(len(self._layers)):
                    kept = store.get((index, item))
                    missing = rows if kept is None else rows[~kept.filled]
                    if len(missing) or kept is None:
                        raise CaptureError(
                            f"layer {index} of {type(self._decoder).__name__} delivered no {what} for batch item "
                            f"{item}, slots {missing[:8].tolist()}: they were not fed to the model, or its attention "
                            f"does not go through transformers' attention interface (attn_implementation "
                            f"{attention_name(self._decoder)!r}; try 'sdpa')"
                        )

    # What the wrapped attention function and the hooks call.

    def _before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self not in _ACTIVE.get():
            return
        cache = kwargs.get("past_key_values")
        if cache is None:
            cache = next((value for value in args if hasattr(value, "get_seq_length")), None)
        self._past = 0 if cache is None else int(cache.get_seq_length())

    def _hidden_hook(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self not in _ACTIVE.get():
                return
            states: Tensor = output[0] if isinstance(output, tuple) else output
            self._check_batch(states.shape[0])
            for item in range(states.shape[0]):
                chosen, local = self._asked(item, states.shape[1])
                rows = self._slot_store(self._hidden, index, item, states, (states.shape[-1],), states.dtype)
                rows.put(chosen, states[item, local.to(states.device)].detach())

        return keep

    def _on_attention(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Any, options: Mapping[str, Any]
    ) -> None:
        """Compute the asked rows from the stock kernel's own inputs.

        Args:
            module: The attention layer that was called.
            query: ``[b, c, l, d]``, rotary embedding applied.
            key: ``[b, k, L, d]``, cached keys included.
            mask: What the stock function got: None, 4D bool or additive, or 2D padding.
            options: The remaining keyword arguments of the call.
        """
        self._check_batch(query.shape[0])
        _check_supported(mask, options)
        query_length, key_length = query.shape[2], key.shape[2]
        if key_length < self._past + query_length:
            raise CaptureError(
                f"the cache holds {key_length} keys of {self._past + query_length} tokens (sliding window): image "
                "tokens were dropped and have no attention; ground with a full forward pass instead"
            )
        index, heads = self._layer_of[id(module)], query.shape[1]
        step = max(1, _SCORE_ELEMENTS // (heads * key_length))
        for item in range(query.shape[0]):
            columns = self._columns[item].to(query.device)
            chosen, local = self._asked(item, query_length)
            rows = self._slot_store(self._attention, index, item, query, (heads, len(columns)), torch.float32)
            if len(columns) == 0:
                rows.filled[chosen] = True
                continue
            for part, place in zip(chosen.split(step), local.split(step), strict=True):
                place = place.to(query.device)
                scores = _scores(query[item][:, place], key[item], options.get("scaling"))
                scores = _masked(scores, mask, item, place, self._past, module, options)
                rows.put(part, torch.softmax(scores, dim=-1)[..., columns].transpose(0, 1))

    def _asked(self, item: int, query_length: int) -> tuple[Tensor, Tensor]:
        """Find the item's rows that are in this pass: their places in ``rows[item]`` and in the pass."""
        local = self._rows[item] - self._past
        chosen = ((local >= 0) & (local < query_length)).nonzero().flatten()
        return chosen, local[chosen]

    def _slot_store(
        self,
        store: dict[tuple[int, int], _Rows],
        index: int,
        item: int,
        like: Tensor,
        shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> _Rows:
        rows = store.get((index, item))
        if rows is None:
            rows = store[index, item] = _Rows(like.new_zeros((len(self._rows[item]), *shape), dtype=dtype))
        return rows

    def _check_batch(self, batch: int) -> None:
        if batch != len(self._rows):
            raise CaptureError(
                f"the model ran a batch of {batch} but rows were asked for {len(self._rows)} items; beam search and "
                "several return sequences are read back with a full forward pass over the finished ids"
            )


class _Rows:
    """A growing answer of one layer for one batch item: ``values [t, ...]`` and which of them have been delivered."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.filled = torch.zeros(len(values), dtype=torch.bool)

    def put(self, places: Tensor, values: Tensor) -> None:
        """Store ``values [n, ...]`` at ``places [n]``."""
        if len(places):
            self.values[places.to(self.values.device)] = values.to(self.values.dtype)
            self.filled[places] = True


def attention_name(decoder: nn.Module) -> str:
    """Name of the attention function that the decoder runs, e.g. ``sdpa``."""
    return getattr(decoder.config, "_attn_implementation", None) or "eager"


def _scores(query: Tensor, key: Tensor, scaling: float | None) -> Tensor:
    """Scaled products ``[c, t, L]`` in float32 (as the fused kernels accumulate) of ``[c, t, d]`` and ``[k, L, d]``.

    Grouped queries share a key head by reshaping, so that keys are not repeated in memory.
    """
    heads, rows, size = query.shape
    groups = key.shape[0]
    grouped = query.float().reshape(groups, heads // groups * rows, size)
    scores = grouped @ key.float().transpose(-1, -2)
    return scores.reshape(heads, rows, key.shape[1]) * (size**-0.5 if scaling is None else scaling)


def _masked(
    scores: Tensor,
    mask: Tensor | None,
    item: int,
    local: Tensor,
    past: int,
    module: nn.Module,
    options: Mapping[str, Any],
) -> Tensor:
    """Hide from each row what the stock kernel hides; ``scores [c, t, L]``, ``local [t]`` rows within the pass."""
    length = scores.shape[-1]
    if mask is not None and mask.ndim == 4:
        visible = mask[item if mask.shape[0] > 1 else 0][:, local, :length]
        return scores.masked_fill(~visible, float("-inf")) if visible.dtype == torch.bool else scores + visible.float()
    slots, positions = torch.arange(length, device=scores.device), (past + local)[:, None]
    seen = torch.ones(len(local), length, dtype=torch.bool, device=scores.device)
    causal = options.get("is_causal")
    if getattr(module, "is_causal", True) if causal is None else causal:
        # From the number of cached tokens: None means lower-right to flash attention and upper-left to sdpa, and with
        # the keys that each is given both come to this.
        seen = slots <= positions
    if mask is not None:
        padded = mask[item].bool()
        seen = seen & nn.functional.pad(padded, (0, length - len(padded)))[:length]
    window = options.get("sliding_window")
    if window:
        seen = seen & (slots > positions - window)
    return scores.masked_fill(~seen, float("-inf"))


def _check_supported(mask: Any, options: Mapping[str, Any]) -> None:
    for name in ("softcap", "s_aux", "position_bias", "cache"):
        if options.get(name) is not None:
            raise CaptureError(f"attention with `{name}` is not a plain softmax of scaled products; it cannot be read")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 4)):
        raise CaptureError(
            f"attention masks of type {type(mask).__name__} cannot be read; load the model with "
            "attn_implementation='sdpa'"
        )


# The wrapper's place in the interface, counted per name: captures may nest and overlap between threads.
_LOCK = threading.Lock()
_INSTALLED: dict[str, tuple[int, AttentionFunction, AttentionFunction | None]] = {}


@contextmanager
def _wrapped(name: str) -> Iterator[None]:
    """Keep the wrapper in the attention interface under ``name`` for the length of the block."""
    with _LOCK:
        count, wrapper, previous = _INSTALLED.get(name, (0, None, None))
        if wrapper is None:
            # Only this instance's own entry is written and put back; the library-wide mapping below it is left alone.
            previous = ALL_ATTENTION_FUNCTIONS._local_mapping.get(name)
            wrapper = _rows_beside(ALL_ATTENTION_FUNCTIONS.get(name))
            ALL_ATTENTION_FUNCTIONS[name] = wrapper
        _INSTALLED[name] = (count + 1, wrapper, previous)
    try:
        yield
    finally:
        with _LOCK:
            count, wrapper, previous = _INSTALLED.pop(name)
            if count > 1:
                _INSTALLED[name] = (count - 1, wrapper, previous)
            elif ALL_ATTENTION_FUNCTIONS._local_mapping.get(name) is wrapper:  # else somebody replaced it meanwhile
                if previous is None:
                    del ALL_ATTENTION_FUNCTIONS[name]
                else:
                    ALL_ATTENTION_FUNCTIONS[name] = previous


def _rows_beside(stock: AttentionFunction | None) -> AttentionFunction:
    """The stock function (None: eager, which each model's module brings along) with the active captures beside it."""

    def rows_beside_stock(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        run = stock if stock is not None else sys.modules[type(module).__module__].eager_attention_forward
        result = run(module, query, key, value, attention_mask, *args, **kwargs)
        for capture in _ACTIVE.get():
            if id(module) in capture._layer_of:
                with torch.no_grad():
                    capture._on_attention(module, query.detach(), key.detach(), attention_mask, kwargs)
        return result

    return rows_beside_stock
