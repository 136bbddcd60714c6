"""Prove that the frozen backbone stayed what it was, by a hash of every parameter and buffer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
import xxhash
from torch import Tensor, nn

from flmm_plugin.errors import FrozenWeightsChanged

_PIECE_BYTES = 1 << 26  # hashed at a time, and copied from a GPU
_SAMPLES = 64  # values per tensor in the fingerprint


class FrozenSeal:
    """A hash of every parameter and buffer of a model at the moment the seal is made.

    Tensors are streamed one piece at a time, so sealing costs no second copy of the weights. A tensor that several
    modules share is hashed under each of its names. The hash is XXH3 with 128 bits: it is read at the speed of memory,
    is the same on every device, and notices what happens by accident. It is no defence against somebody who looks for
    other weights with the same hash.

    Args:
        model: The model to watch. It is not changed, and not kept alive by copies of its tensors.

    Attributes:
        hashes: 32 hexadecimal digits by tensor name, over name-independent facts: dtype, shape and bytes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.hashes = dict(_hashes(model))

    @property
    def digest(self) -> str:
        """One hash for the whole model: what a results file states beside its numbers."""
        whole = hashlib.sha256()
        for name, value in sorted(self.hashes.items()):
            whole.update(f"{name}\0{value}\n".encode())
        return whole.hexdigest()

    def verify(self) -> None:
        """Hash everything again.

        Raises:
            FrozenWeightsChanged: Naming the first tensor that was changed, added or removed.
        """
        seen = set()
        for name, value in _hashes(self._model):
            if name not in self.hashes:
                raise FrozenWeightsChanged(f"tensor {name!r} was added to the frozen model after it was sealed")
            if value != self.hashes[name]:
                raise FrozenWeightsChanged(
                    f"tensor {name!r} of the frozen model is not what it was when sealed; something trains or converts "
                    "the backbone (an optimizer over its parameters, .half(), resize_token_embeddings): load it afresh"
                )
            seen.add(name)
        for name in self.hashes:
            if name not in seen:
                raise FrozenWeightsChanged(f"tensor {name!r} was removed from the frozen model after it was sealed")


def fingerprint(model: nn.Module) -> str:
    """Compute a cheap SHA-256 over names, shapes, dtypes and a few values of every tensor.

    Takes milliseconds where a seal of a large model takes many seconds. It notices training (which moves every value)
    and reloading, not a hand that changes one value that was not sampled: that is the seal's work.
    """
    whole = hashlib.sha256()
    for name, tensor in _tensors(model):
        flat = tensor.reshape(-1)
        places = torch.linspace(0, max(flat.numel() - 1, 0), min(_SAMPLES, flat.numel()), dtype=torch.float64)
        whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        whole.update(_bytes(flat[places.long().to(flat.device)]))
    return whole.hexdigest()


def _hashes(model: nn.Module) -> Iterator[tuple[str, str]]:
    staging: Tensor | None = None
    for name, tensor in _tensors(model):
        one = xxhash.xxh3_128(f"{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        flat = tensor.reshape(-1)
        step = max(1, _PIECE_BYTES // tensor.element_size())
        for start in range(0, flat.numel(), step):
            piece = flat[start : start + step].contiguous().view(torch.uint8)
            if piece.is_cuda:  # through page-locked memory, which a GPU fills several times as fast as other memory
                if staging is None:
                    staging = torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
                piece = staging[: piece.numel()].copy_(piece)
            one.update(_bytes(piece))
        yield name, one.hexdigest()


def _bytes(values: Tensor) -> memoryview:
    """Return the raw bytes of a 1-D tensor; viewed as bytes because numpy knows no bfloat16."""
    return values.detach().contiguous().cpu().view(torch.uint8).numpy().data


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by full name, shared ones under each, offloaded ones from where they are."""
    for prefix, module in model.named_modules():
        own = [*module.named_parameters(recurse=False, remove_duplicate=False)]
        own += module.named_buffers(recurse=False, remove_duplicate=False)
        for name, tensor in own:
            full = f"{prefix}.{name}" if prefix else name
            yield full, _offloaded(module, name, full) if tensor.device.type == "meta" else tensor.detach()


def _offloaded(module: nn.Module, name: str, full: str) -> Tensor:
    """Return the value of a tensor that accelerate keeps elsewhere while its module holds a placeholder."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        weights = getattr(one, "weights_map", None)
        if weights is not None and name in weights:
            value: Tensor = weights[name]
            return value.detach()
    raise FrozenWeightsChanged(f"tensor {full!r} has no values (meta device); load the model before it is sealed")
