"""Word-image attention of a model that goes on running its stock attention.

The seam: while a capture is active, the attention function that the model uses is wrapped *under its own name* in
transformers' attention interface. The wrapper calls the stock function first and returns its result unchanged; for the
decoder layers of the captured model it then computes, from the very queries and keys that the stock kernel got, the
softmax rows of the asked positions and keeps their image columns. A new name would not do: flash attention passes the
name on as the kernel to import, and masks are not made for names that the mask registry does not know. Outside a
capture the interface holds the stock function itself.

Linear layers do the same without a softmax: their kernels are wrapped under their names in the modules that call them,
and rows follow in closed form from what the kernels get (`flmm_plugin.token_mixers`).

Hidden states come from output hooks on the decoder layers and its final norm, the number of cached tokens from a hook
before the decoder (key length minus query length is not it with a static cache).

Memory: rows cost layers * heads * columns * 4 bytes per asked position, or per group of positions where a phrase's
tokens are merged while they are read; an L x L matrix never exists.

Shapes: b batch, t asked positions, n groups of them, l query length, L key length, m layers, c heads, k key-value
    heads, d head or hidden size.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flmm_plugin import softmax_rows
from flmm_plugin.errors import CaptureError
from flmm_plugin.heads.manifest import CROSS, LINEAR, SOFTMAX
from flmm_plugin.row_places import ItemPlaces, Merge, Pass, Store
from flmm_plugin.token_mixers import (
    KernelInputs,
    Tokens,
    called_kernels,
    final_norm,
    read_kernel,
    token_mixers,
)

AttentionFunction = Callable[..., Any]

# The captures of this thread (and of this async task): another thread that runs the same model meanwhile is neither
# captured nor slowed down.
_ACTIVE: ContextVar[tuple[AttentionCapture, ...]] = ContextVar("flmm_active_captures", default=())

# Scores of at most this many row x key x head elements exist at a time (float32: 16 MiB).
_SCORE_ELEMENTS = 1 << 22
# Rows that walk over the keys of a linear layer together, at least: every walk multiplies the keys with each other.
_ROWS_OF_A_WALK = 64


class AttentionCapture:
    """Attention rows and hidden states of asked positions, beside a stock forward pass.

    Example::

        capture = AttentionCapture(model.get_decoder(), rows=[text_slots], columns=[image_slots])
        with torch.no_grad(), capture.active():
            model(**inputs)
        maps = capture.attention(0)          # [n, m, c, columns]

    Args:
        decoder: The language model's body: ``.layers[i].self_attn``, ``.norm``, ``.config``.
        rows: One tensor per batch item: absolute sequence slots whose rows are wanted. Slots count from 0 and include
            left padding and tokens that are already in the cache.
        columns: One tensor per batch item: slots of its image tokens. Empty: no rows are computed for that item.
        hidden_states: Whether to keep the hidden states of the asked positions too.
        sizes: Per batch item, numbers of rows that follow each other and become one; they add up to its rows. None:
            every row is kept.
        merge: ``mean`` or ``max`` over the rows that become one.
        weighted: Multiply each weight with the norm of its value (Kobayashi et al. 2020; the output projection is left
            out).

    Layers without rows (`flmm_plugin.token_mixers`) are left out. Columns are slots of the sequence, but where a
    decoder looks at the picture beside it (Mllama): there they are places among the picture's own tokens.

    Several passes (prefill, then decoding steps) fill one capture. When a slot is computed twice the last one counts,
    and where rows are merged it is an error.
    """

    def __init__(
        self,
        decoder: nn.Module,
        rows: Sequence[Tensor],
        columns: Sequence[Tensor],
        hidden_states: bool = True,
        *,
        sizes: Sequence[Sequence[int]] | None = None,
        merge: str = "mean",
        weighted: bool = False,
    ) -> None:
        if len(rows) != len(columns):
            raise CaptureError(
                f"rows for {len(rows)} batch items but columns for {len(columns)}; give one each per item"
            )
        self._decoder = decoder
        self._layers = cast("list[nn.Module]", list(cast("nn.ModuleList", decoder.layers)))
        self._mixers = token_mixers(decoder)
        self._layer_of = {id(one.module): index for index, one in enumerate(self._mixers) if one.module is not None}
        ends = list(accumulate(one.heads for one in self._mixers))
        #: The maps of each layer among all of them.
        self._maps_of = [slice(end - one.heads, end) for end, one in zip(ends, self._mixers, strict=True)]
        self._weighted = weighted
        # Positions stay on the CPU: choosing among them must not wait for the device.
        self._rows = [row.detach().to("cpu", torch.long) for row in rows]
        self._columns = [column.detach().to("cpu", torch.long) for column in columns]
        self._merges = [Merge(one, merge) for one in sizes] if sizes is not None else [None] * len(rows)
        for row, merging in zip(self._rows, self._merges, strict=True):
            if merging is not None and merging.rows != len(row):
                raise CaptureError(f"{len(row)} rows are to be merged in groups of {merging.rows} rows in all")
        self._with_hidden = hidden_states
        self._attention = Store(len(rows))
        self._hidden = Store(len(rows))
        self._passes: list[Pass] = []
        self._running: Pass | None = None
        self._past = 0
        # Keys of linear layers that rows of later passes need, by layer; and the linear layer that is running.
        self._tokens: dict[int, Tokens] = {}
        self._linear: nn.Module | None = None

    @contextmanager
    def active(self) -> Iterator[AttentionCapture]:
        """Capture what the model computes in this block, in this thread.

        Raises:
            CaptureError: At the end of the block, when a layer delivered nothing for some asked position. Not raised
                over an exception of the block itself.
        """
        self._attention = Store(len(self._rows))
        self._hidden = Store(len(self._rows))
        self._passes = []
        self._running = None
        self._tokens = {}
        hooks = [self._decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True)]
        if self._with_hidden:
            # The last layer's states are read after the final norm, as `output_hidden_states` gives them.
            outputs: list[nn.Module] = [*self._layers[:-1], final_norm(self._decoder)]
            hooks += [module.register_forward_hook(self._hidden_hook(index)) for index, module in enumerate(outputs)]
        for one in self._mixers:
            if one.kind == LINEAR and one.module is not None:
                hooks += [
                    one.module.register_forward_pre_hook(self._before_linear),
                    one.module.register_forward_hook(self._after_linear),
                ]
        token = _ACTIVE.set((*_ACTIVE.get(), self))
        try:
            with ExitStack() as wrapped:
                for place in self._wrapped_places():
                    wrapped.enter_context(_wrapped(*place))
                yield self
        finally:
            _ACTIVE.reset(token)
            for hook in hooks:
                hook.remove()
            self._end_pass()
            self._tokens = {}
            self._linear = None
        self._check_complete()

    def attention(self, item: int) -> Tensor:
        """Rows of one batch item.

        Returns:
            ``[t, m, c, columns]`` float32, rows in the order asked for, of the layers that have rows. Those of softmax
            layers are >= 0, over *all* keys, so that a row sums to the share of attention that the image got; those of
            linear layers are signed. Where rows are merged, ``[n, m, c, columns]``; where layers differ in their number
            of heads, each map stands alone: ``[t, maps, 1, columns]``. On the device of the last layer.
        """
        found = self._attention.get(item)
        heads = {one.heads for one in self._mixers if one.heads}
        each = heads.pop() if len(heads) == 1 else 1
        return found.view(found.shape[0], found.shape[1] // each, each, found.shape[2])

    def hidden(self, item: int) -> Tensor:
        """Outputs of every decoder layer at the asked positions, ``[t, m, d]``; the last one after the final norm."""
        if not self._with_hidden:
            raise CaptureError("this capture kept no hidden states; make it with hidden_states=True")
        return self._hidden.get(item)

    def _check_complete(self) -> None:
        kinds = [("attention", "with_rows", [index for index, one in enumerate(self._mixers) if one.heads])]
        if self._with_hidden:
            kinds.append(("hidden states", "with_hidden", list(range(len(self._layers)))))
        missing_of: dict[tuple[int, ...], tuple[int, list[int]] | None] = {}
        for what, layers, wanted in kinds:
            for index in wanted:
                ran = tuple(number for number, one in enumerate(self._passes) if index in getattr(one, layers))
                if ran not in missing_of:
                    missing_of[ran] = self._missing([self._passes[number] for number in ran])
                missing = missing_of[ran]
                if missing is not None:
                    item, slots = missing
                    raise CaptureError(
                        f"layer {index} of {type(self._decoder).__name__} delivered no {what} for batch item {item}, "
                        f"slots {slots}: they were not fed to the model, or its attention does not go through "
                        f"transformers' attention interface (attn_implementation "
                        f"{attention_name(self._decoder)!r}; try 'sdpa')"
                    )

    def _missing(self, passes: Sequence[Pass]) -> tuple[int, list[int]] | None:
        """Return the first batch item that lacks rows, and some of their slots; None where all were delivered."""
        for item, rows in enumerate(self._rows):
            delivered = {place for one in passes for place in one.chosen[item].tolist()}
            # Where no row was asked for, something must have run all the same.
            if len(delivered) < len(rows) or not passes:
                return item, [slot for place, slot in enumerate(rows.tolist()) if place not in delivered][:8]
        return None

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

    def _pass(self, batch: int, length: int) -> Pass:
        """Return the plan of the pass that is running: which rows are in it, made once for all its layers."""
        if batch != len(self._rows):
            raise CaptureError(
                f"the model ran a batch of {batch} but rows were asked for {len(self._rows)} items; beam search and "
                "several return sequences are read back with a full forward pass over the finished ids"
            )
        if self._running is None or self._running.length != length:
            self._running = Pass(self._rows, self._columns, self._past, length)
            self._check_merged_once(self._running)
            self._passes.append(self._running)
        return self._running

    def _check_merged_once(self, new: Pass) -> None:
        for item, merge in enumerate(self._merges):
            before = [one.chosen[item] for one in self._passes] if merge is not None else []
            if before and bool(torch.isin(new.chosen[item], torch.cat(before)).any()):
                raise CaptureError("a row was computed twice and would count twice; capture without `sizes` and merge")

    def _hidden_hook(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if self not in _ACTIVE.get():
                return
            states: Tensor = output[0] if isinstance(output, tuple) else output
            now = self._pass(states.shape[0], states.shape[1])
            for item, places in enumerate(now.on(states.device)):
                into = self._hidden.room(item, len(self._rows[item]), len(self._layers), states.shape[-1:], states)
                into[places.chosen, index] = states[item, places.local].detach().to(into.device)
            now.with_hidden.add(index)

        return keep

    def _wrapped_places(self) -> Iterator[_Place]:
        """Give what is wrapped while the capture is active: the table and the name of each kernel that is called."""
        kinds = {one.kind for one in self._mixers}
        if SOFTMAX in kinds or CROSS in kinds:
            # Only this instance's own entries are written; the library-wide mapping below it is left alone.
            name = attention_name(self._decoder)
            yield ALL_ATTENTION_FUNCTIONS._local_mapping, name, partial(_rows_beside, name)
        for module in {type(one.module): one.module for one in self._mixers if one.kind == LINEAR}.values():
            for table, name in called_kernels(cast("nn.Module", module)):
                yield table, name, partial(_rows_beside_kernel, table, name)

    def _before_linear(self, module: nn.Module, args: Any) -> None:
        if self in _ACTIVE.get():
            self._linear = module

    def _after_linear(self, module: nn.Module, args: Any, output: Any) -> None:
        if self in _ACTIVE.get():
            self._linear = None

    def _on_attention(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, options: Mapping[str, Any]
    ) -> None:
        """Compute the asked rows from the stock kernel's own inputs.

        Args:
            module: The attention layer that was called.
            query: ``[b, c, l, d]``, rotary embedding applied.
            key: ``[b, k, L, d]``, cached keys included.
            value: Values, ``[b, k, L, *]``.
            mask: What the stock function got: None, 4D bool or additive, or 2D padding.
            options: The remaining keyword arguments of the call.
        """
        now = self._pass(query.shape[0], query.shape[2])
        heads, key_length = query.shape[1], key.shape[2]
        index = self._layer_of[id(module)]
        # A window's cache has let go of its first keys; a picture beside the sequence has all of its own.
        gone = 0 if self._mixers[index].kind == CROSS else max(0, self._past + now.length - key_length)
        now.with_rows.add(index)
        softmax_rows.check_supported(mask, options)
        step = max(1, _SCORE_ELEMENTS // (heads * key_length))
        for item, places in enumerate(now.on(query.device)):
            into = self._room(item, query)
            if not into.shape[-1] or not places.count:
                continue
            keys = key[item].float()
            hidden = now.rows_of_mask(places, item, mask, key_length, gone, module, options)
            columns = places.columns if not gone else (self._columns[item] - gone).to(query.device)
            norms = softmax_rows.norms(value[item], heads, columns) if self._weighted else None
            for start in range(0, places.count, step):
                end = min(start + step, places.count)
                rows = places.read(start, end)
                scores = softmax_rows.scores(query[item, :, rows], keys, options.get("scaling"))
                if options.get("softcap") is not None:
                    scores = torch.tanh(scores / options["softcap"]) * options["softcap"]
                if options.get("position_bias") is not None:
                    scores += options["position_bias"].expand(len(key), -1, -1, -1)[item, :, rows, :key_length]
                # Rows see all but the last few keys: adding zeros to the others would take a tenth of the time.
                scores[..., hidden.first :].add_(hidden.rows[:, start:end])
                shares = softmax_rows.shares(scores, options.get("s_aux"))
                self._keep(item, places, start, end, index, softmax_rows.picked(shares, columns, norms, gone))

    def _on_kernel(self, given: KernelInputs) -> None:
        """Compute the asked rows of the linear layer that is running from its kernel's own inputs."""
        now = self._pass(given.query.shape[0], given.query.shape[2])
        index = self._layer_of[id(self._linear)]
        now.with_rows.add(index)
        tokens = self._tokens_of(index, given, now)
        for item, places in enumerate(now.on(given.query.device)):
            into = self._room(item, given.query)
            if tokens is None or not into.shape[-1] or not places.count:
                continue
            columns = (self._columns[item] - tokens.first).to(given.query.device)
            norms = tokens.norms[item][:, columns] if self._weighted else None
            step = max(_ROWS_OF_A_WALK, _SCORE_ELEMENTS // (into.shape[1] * tokens.key.shape[2]))
            for start in range(0, places.count, step):
                end = min(start + step, places.count)
                query = given.prepared(given.query[item : item + 1, :, places.read(start, end)])
                at = (self._past - tokens.first + now.local[item][start:end])[None]
                weights = tokens.rows(given, item, query, at)[..., columns]
                self._keep(item, places, start, end, index, weights if norms is None else weights * norms[:, None])

    def _tokens_of(self, index: int, given: KernelInputs, now: Pass) -> Tokens | None:
        """Return the keys of a linear layer from the first image token on; None where no item has any.

        They are remembered only while rows of later passes are to come.

        Raises:
            CaptureError: The picture is in the layer's state already: it went through before the capture began.
        """
        first = min((int(one.min()) for one in self._columns if len(one)), default=None)
        if first is None:
            return None
        tokens = Tokens.of(given, self._past, first)
        before = self._tokens.pop(index, None)
        if before is not None and tokens.first > first:
            tokens = before.followed_by(tokens)
        if tokens.first > first and now.chosen and any(len(one) for one in now.chosen):
            raise CaptureError(
                f"layer {index} of {type(self._decoder).__name__} keeps a state instead of keys, and the picture went "
                "into it before the capture began; begin the capture with the prompt"
            )
        if any(len(one) and int(one.max()) >= self._past + now.length for one in self._rows):
            self._tokens[index] = tokens
        return tokens

    def _room(self, item: int, like: Tensor) -> Tensor:
        """Return where all rows of a batch item go, ``[n, maps, columns]``."""
        merge, columns = self._merges[item], len(self._columns[item])
        kept = len(self._rows[item]) if merge is None else len(merge.sizes)
        maps = self._maps_of[-1].stop
        fill = 0.0 if merge is None else merge.begin
        return self._attention.room(item, kept, maps, (columns,), like, torch.float32, fill)

    def _keep(self, item: int, places: ItemPlaces, start: int, end: int, index: int, rows: Tensor) -> None:
        """Write rows ``start`` to ``end`` of a layer, ``[c, t, columns]``, or merge them into what is written."""
        merge, maps = self._merges[item], self._maps_of[index]
        into = self._room(item, rows)
        if merge is None:
            into[places.written(start, end), maps] = rows.transpose(0, 1).to(into.device)
        else:
            merge.add(rows, places.segments(merge, start, end), into[:, maps])


def attention_name(decoder: nn.Module) -> str:
    """Name of the attention function that the decoder runs, e.g. ``sdpa``."""
    return getattr(decoder.config, "_attn_implementation", None) or "eager"


#: A table of functions, the name of one of them, and how that is made which stands there while a capture is active.
_Place = tuple[dict[str, Any], str, Callable[[], AttentionFunction]]

# What is wrapped, by table and name, with the number of captures that need it: these may nest, and threads overlap.
_LOCK = threading.Lock()
_INSTALLED: dict[tuple[int, str], tuple[int, AttentionFunction, AttentionFunction | None]] = {}


@contextmanager
def _wrapped(table: dict[str, Any], name: str, make: Callable[[], AttentionFunction]) -> Iterator[None]:
    """Keep a wrapper in a table under a name for the length of the block; the first of several stays."""
    place = (id(table), name)
    with _LOCK:
        if place in _INSTALLED:
            count, wrapper, previous = _INSTALLED[place]
        else:
            count, wrapper, previous = 0, make(), table.get(name)
            table[name] = wrapper
        _INSTALLED[place] = (count + 1, wrapper, previous)
    try:
        yield
    finally:
        with _LOCK:
            count, wrapper, previous = _INSTALLED.pop(place)
            if count > 1:
                _INSTALLED[place] = (count - 1, wrapper, previous)
            elif table.get(name) is wrapper:  # else somebody replaced it meanwhile
                if previous is None:
                    del table[name]
                else:
                    table[name] = previous


def _rows_beside(name: str) -> AttentionFunction:
    """The stock function of a name with the active captures beside it."""
    # None: eager, which each model's module brings along.
    stock: AttentionFunction | None = ALL_ATTENTION_FUNCTIONS.get(name)

    def rows_beside_stock(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        run = stock if stock is not None else sys.modules[type(module).__module__].eager_attention_forward
        result = run(module, query, key, value, attention_mask, *args, **kwargs)
        for capture in _ACTIVE.get():
            if id(module) in capture._layer_of:
                with torch.no_grad():
                    inputs = (query.detach(), key.detach(), value.detach())
                    capture._on_attention(module, *inputs, attention_mask, kwargs)
        return result

    return rows_beside_stock


def _rows_beside_kernel(table: dict[str, Any], name: str) -> AttentionFunction:
    """The kernel of a linear layer, looked up in a table, with the active captures beside it."""
    stock: AttentionFunction = table[name]

    def rows_beside_kernel(*args: Any, **kwargs: Any) -> Any:
        result = stock(*args, **kwargs)
        reading = [capture for capture in _ACTIVE.get() if capture._linear is not None]
        if reading:
            with torch.no_grad():
                given = read_kernel(name, stock, args, kwargs)
                for capture in reading:
                    capture._on_kernel(given)
        return result

    return rows_beside_kernel
