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
        self._attention = _Store(len(rows))
        self._hidden = _Store(len(rows))
        self._passes: list[_Pass] = []
        self._running: _Pass | None = None
        self._past = 0

    @contextmanager
    def active(self) -> Iterator[AttentionCapture]:
        """Capture what the model computes in this block, in this thread.

        Raises:
            CaptureError: At the end of the block, when a layer delivered nothing for some asked position. Not raised
                over an exception of the block itself.
        """
        self._attention = _Store(len(self._rows))
        self._hidden = _Store(len(self._rows))
        self._passes = []
        self._running = None
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
            self._end_pass()
        self._check_complete()

    def attention(self, item: int) -> Tensor:
        """Rows of one batch item.

        Returns:
            ``[t, m, c, columns]`` float32, >= 0, rows in the order asked for; softmax over *all* keys, so that a row
            sums to the share of attention that the image got. On the device of the last layer.
        """
        return self._attention.get(item)

    def hidden(self, item: int) -> Tensor:
        """Outputs of every decoder layer at the asked positions, ``[t, m, d]``; the last one after the final norm."""
        if not self._with_hidden:
            raise CaptureError("this capture kept no hidden states; make it with hidden_states=True")
        return self._hidden.get(item)

    def _check_complete(self) -> None:
        kinds = [("attention", "with_rows")] + ([("hidden states", "with_hidden")] if self._with_hidden else [])
        for what, layers in kinds:
            for item, rows in enumerate(self._rows):
                delivered = torch.zeros(len(self._layers), len(rows), dtype=torch.bool)
                for one in self._passes:
                    for index in getattr(one, layers):
                        delivered[index, one.chosen[item]] = True
                # A layer without a pass is missing too where no row was asked for: nothing ran.
                ran = {index for one in self._passes for index in getattr(one, layers)}
                for index in range(len(self._layers)):
                    missing = rows[~delivered[index]]
                    if len(missing) or index not in ran:
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
        self._end_pass()

    def _end_pass(self) -> None:
        """Let go of the masks and indices of the pass that is over; what it delivered stays."""
        if self._running is not None:
            self._running.release()
        self._running = None

    def _pass(self, batch: int, length: int) -> _Pass:
        """Return the plan of the pass that is running: which rows are in it, made once for all its layers."""
        if batch != len(self._rows):
            raise CaptureError(
                f"the model ran a batch of {batch} but rows were asked for {len(self._rows)} items; beam search and "
                "several return sequences are read back with a full forward pass over the finished ids"
            )
        if self._running is None or self._running.length != length:
            self._running = _Pass(self._rows, self._columns, self._past, length)
            self._passes.append(self._running)
        return self._running

    def _hidden_hook(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self not in _ACTIVE.get():
                return
            states: Tensor = output[0] if isinstance(output, tuple) else output
            now = self._pass(states.shape[0], states.shape[1])
            places = now.on(states.device)
            for item, chosen in enumerate(places.chosen):
                into = self._hidden.room(item, len(self._rows[item]), len(self._layers), states.shape[-1:], states)
                into[chosen, index] = states[item, places.local[item]].detach().to(into.device)
            now.with_hidden.add(index)

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
        now = self._pass(query.shape[0], query.shape[2])
        heads, key_length = query.shape[1], key.shape[2]
        if key_length < self._past + now.length:
            raise CaptureError(
                f"the cache holds {key_length} keys of {self._past + now.length} tokens (sliding window): image "
                "tokens were dropped and have no attention; ground with a full forward pass instead"
            )
        index = self._layer_of[id(module)]
        now.with_rows.add(index)
        places = now.on(query.device)
        room = [
            self._attention.room(item, len(rows), len(self._layers), (heads, len(columns)), query, torch.float32)
            for item, (rows, columns) in enumerate(zip(self._rows, self._columns, strict=True))
        ]
        _check_supported(mask, options)
        if not now.most or not any(len(columns) for columns in self._columns):
            return
        mask = now.rows_of_mask(places, mask, key_length, module, options)
        step = max(1, _SCORE_ELEMENTS // (query.shape[0] * heads * key_length))
        for start in range(0, now.most, step):
            end = min(start + step, now.most)
            scores = _scores(places.rows_of(query, start, end), key, options.get("scaling"))
            shares = torch.softmax(scores.add_(mask[..., start:end, :]), dim=-1)
            for item, into in enumerate(room):
                count = min(end, now.counts[item]) - start
                if count > 0 and into.shape[-1]:
                    part = shares[item, :, :count, places.columns[item]].transpose(0, 1)
                    into[places.part(item, start, start + count), index] = part.to(into.device)


class _Store:
    """Answers of all layers, per batch item ``[t, m, ...]``, in memory that is taken once and written in place."""

    def __init__(self, items: int) -> None:
        self._values: list[Tensor | None] = [None] * items
        self._device: torch.device | None = None

    def room(
        self,
        item: int,
        rows: int,
        layers: int,
        shape: tuple[int, ...],
        like: Tensor,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return where an item's answers go, zeros at first; ``like`` gives device and dtype."""
        self._device = like.device
        values = self._values[item]
        if values is None:
            values = self._values[item] = like.new_zeros((rows, layers, *shape), dtype=dtype)
        return values

    def get(self, item: int) -> Tensor:
        """Return an item's answers, on the device that wrote last."""
        values = self._values[item]
        if values is None:
            raise CaptureError("nothing was captured yet; run the model inside `with capture.active():` first")
        return values.to(self._device)


#: Positions, as a slice where they follow each other (reading and writing then copies nothing), else as a tensor.
_Places = slice | Tensor


class _Pass:
    """One forward pass: which asked rows are in it. The same for all of its layers, so it is found out once.

    Args:
        rows: Per batch item, the asked slots, on the CPU.
        columns: Per batch item, the slots of its image tokens, on the CPU.
        past: Number of tokens in the cache before the pass.
        length: Number of tokens in the pass, l.
    """

    def __init__(self, rows: Sequence[Tensor], columns: Sequence[Tensor], past: int, length: int) -> None:
        self.past = past
        self.length = length
        self._columns = columns
        self.chosen: list[Tensor] = []
        self.local: list[Tensor] = []
        for asked in rows:
            local = asked - past
            chosen = ((local >= 0) & (local < length)).nonzero().flatten()
            self.chosen.append(chosen)
            self.local.append(local[chosen])
        self.counts = [len(one) for one in self.chosen]
        self.most = max(self.counts, default=0)
        self.with_rows: set[int] = set()
        self.with_hidden: set[int] = set()
        self._places: dict[torch.device, _PlacesOnDevice] = {}
        self._masks: dict[tuple[Any, ...], tuple[Any, Tensor]] = {}

    def on(self, device: torch.device) -> _PlacesOnDevice:
        """Return the places on a device; they are copied to it once."""
        places = self._places.get(device)
        if places is None:
            places = self._places[device] = _PlacesOnDevice(self.chosen, self.local, self._columns, self.most, device)
        return places

    def release(self) -> None:
        """Forget masks and indices on devices; a capture outlives its passes, of which decoding makes hundreds."""
        self._places.clear()
        self._masks.clear()

    def rows_of_mask(
        self, places: _PlacesOnDevice, mask: Any, key_length: int, module: nn.Module, options: Mapping[str, Any]
    ) -> Tensor:
        """Return `_rows_of_mask` for the rows of this pass; layers that get the same mask share the answer."""
        causal = options.get("is_causal")
        causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
        window = options.get("sliding_window")
        key = (places.device, id(mask), key_length, causal, window)
        if key not in self._masks:
            rows = _rows_of_mask(mask, places.padded, self.past, key_length, causal=causal, window=window)
            self._masks[key] = (mask, rows)  # the mask stays alive, or its id would be another's
        return self._masks[key][1]


class _PlacesOnDevice:
    """Indices of the rows of a pass on one device: where each is read in the pass, and where its answer is written.

    Attributes:
        chosen: Per item, places of its rows among those that it asked for.
        local: Per item, places of its rows in the pass.
        columns: Per item, slots of its image tokens.
        padded: ``[b, t]``, `local` of all items, the last place repeated where an item has fewer rows.
    """

    def __init__(
        self, chosen: list[Tensor], local: list[Tensor], columns: Sequence[Tensor], most: int, device: torch.device
    ) -> None:
        self.device = device
        self.chosen = [_places(one, device) for one in chosen]
        self.local = [_places(one, device) for one in local]
        self.columns = [_places(one, device) for one in columns]
        padded = torch.zeros(len(local), most, dtype=torch.long)
        for item, one in enumerate(local):
            if len(one):
                padded[item] = one[-1]
                padded[item, : len(one)] = one
        self.padded = padded.to(device)
        first = self.local[0] if self.local else None
        self._together = first if isinstance(first, slice) and all(one == first for one in self.local) else None

    def rows_of(self, query: Tensor, start: int, end: int) -> Tensor:
        """Take rows ``start`` to ``end`` of every item out of ``[b, c, l, d]``."""
        if self._together is not None:
            return query[:, :, self._together.start + start : self._together.start + end]
        index = self.padded[:, None, start:end, None].expand(-1, query.shape[1], -1, query.shape[3])
        return query.gather(2, index)

    def part(self, item: int, start: int, end: int) -> _Places:
        """Return the places of an item's rows ``start`` to ``end`` among those that it asked for."""
        chosen = self.chosen[item]
        return slice(chosen.start + start, chosen.start + end) if isinstance(chosen, slice) else chosen[start:end]


def _places(positions: Tensor, device: torch.device) -> _Places:
    """Return positions on a device: a slice where each is the next of the one before."""
    if len(positions) == 0:
        return slice(0, 0)
    first = int(positions[0])
    if torch.equal(positions, torch.arange(first, first + len(positions))):
        return slice(first, first + len(positions))
    return positions.to(device)


def attention_name(decoder: nn.Module) -> str:
    """Name of the attention function that the decoder runs, e.g. ``sdpa``."""
    return getattr(decoder.config, "_attn_implementation", None) or "eager"


def _scores(query: Tensor, key: Tensor, scaling: float | None) -> Tensor:
    """Return scaled products ``[b, c, t, L]`` of ``[b, c, t, d]`` and ``[b, k, L, d]`` in float32, as fused kernels do.

    Grouped queries share a key head by reshaping, so that keys are not repeated in memory.
    """
    batch, heads, rows, size = query.shape
    groups = key.shape[1]
    scaled = query.float() * (size**-0.5 if scaling is None else scaling)
    grouped = scaled.reshape(batch, groups, heads // groups * rows, size)
    return (grouped @ key.float().transpose(-1, -2)).reshape(batch, heads, rows, key.shape[2])


def _rows_of_mask(
    mask: Tensor | None, rows: Tensor, past: int, length: int, *, causal: bool, window: int | None
) -> Tensor:
    """Return what is added to the scores of each row, so that it sees what it sees in the stock kernel.

    Args:
        mask: None, 4D bool (true: visible) or additive ``[b or 1, c or 1, l, L]``, or 2D padding ``[b, L]``.
        rows: Places of the rows in the pass, ``[b, t]``.
        past: Number of tokens in the cache before the pass.
        length: Number L of keys, those in the cache and those of the pass.
        causal: Whether a row sees no later key; plays no role beside a 4D mask.
        window: Number of keys that a row sees back to; None: all. Plays no role beside a 4D mask.

    Returns:
        ``[b, c or 1, t, L]`` float32: minus infinity where a key is hidden, else 0 or the additive mask.
    """
    if mask is not None and mask.ndim == 4:
        index = rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
        picked = mask.expand(len(rows), -1, -1, -1).gather(2, index)[..., :length]
        return _additive(~picked) if picked.dtype == torch.bool else picked.float()
    slots = torch.arange(length, device=rows.device)
    positions = (past + rows)[:, None, :, None]
    hidden = torch.zeros(len(rows), 1, rows.shape[1], length, dtype=torch.bool, device=rows.device)
    if causal:
        # From the number of cached tokens: None means lower-right to flash attention and upper-left to sdpa, and with
        # the keys that each is given both come to this.
        hidden = slots > positions
    if mask is not None:
        padding = ~nn.functional.pad(mask.bool(), (0, length - mask.shape[1]))
        hidden = hidden | padding[:, None, None]
    if window:
        hidden = hidden | (slots <= positions - window)
    return _additive(hidden)


def _additive(hidden: Tensor) -> Tensor:
    """Return minus infinity where true, else 0; adding it is faster than filling by a mask in every layer."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))


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
