"""Let every token of a vision tower see its own place alone, to find out which place that is.

Attention mixes what all places show, so that a change anywhere changes every token. While `without_mixing` is on, each
token of self-attention takes its own value, and pooling (fewer queries than keys) takes the mean of what it may see:
what changes when a part of the picture changes is then exactly the tokens that show that part. Only the calling thread
is affected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)


class _OwnValues(TorchFunctionMode):
    """Fused and written-out attention, with the scores taken out of it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3] if len(args) > 2 else (kwargs.pop(one) for one in ("query", "key", "value"))
            if query.shape[-2] == key.shape[-2]:
                return value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
            return func(query * 0, key, value, *args[3:], **kwargs)
        if func in _SOFTMAX and args and args[0].ndim > 2 and args[0].shape[-1] == args[0].shape[-2]:
            scores = args[0]
            return torch.eye(scores.shape[-1], dtype=scores.dtype, device=scores.device).expand_as(scores)
        return func(*args, **kwargs)


@contextmanager
def without_mixing() -> Iterator[None]:
    """Take attention's scores out of what this thread computes in the block."""
    with _OwnValues():
        yield
