"""Numbers on disk: float16 with a shared power of two, and records of such tensors as compressed bytes.

Plain float16 would ruin what is kept here. Attention to one of 576 image tokens is 1e-4 and less, where float16 has few
digits left; hidden states of large models exceed its largest number. So every map (every token's state, every channel)
is first multiplied by the power of two that brings its largest value just under 2**15. That is exact, and leaves the
rounding of float16 alone: a relative error of at most 2**-11 for all values down to 2**-29 of the largest. Values of a
bfloat16 model have fewer digits than float16: they come back bit for bit.

Compression: the upper bytes (sign, exponent, two digits) of neighbours are alike, the lower ones are noise. The two are
compressed apart (Zstandard, lowest level), which is faster than a disk in both directions; higher levels gain nothing.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import Tensor

from flmm_plugin.errors import BadCache

# The largest value of a group lies in [2**14, 2**15): one below float16's own largest exponent, so that rounding up
# cannot overflow.
_TOP = 15
# Of groups that are smaller than this power of two nothing need be left.
_LOWEST = -100
_LEVEL = 1
_CHECKSUM = 4


@dataclass(frozen=True, eq=False)
class Halves:
    """A float tensor as float16 and one power of two per group.

    Attributes:
        values: float16, any shape, on the CPU.
        exponents: int16, the leading dimensions of ``values``; a group are the values that share one.
    """

    values: Tensor
    exponents: Tensor

    @classmethod
    def of(cls, tensor: Tensor, trailing: int) -> Halves:
        """Round a float tensor.

        Args:
            tensor: Any float type and device; finite.
            trailing: Dimensions at the end that share a power of two.
        """
        values = tensor.detach().to("cpu", torch.float32)
        groups = values.shape[: values.ndim - trailing]
        # Reshaped by sizes that are known: -1 says nothing about a tensor without values.
        flat = values.reshape(int(np.prod(groups, dtype=np.int64)), int(np.prod(values.shape[len(groups) :])))
        largest = flat.abs().amax(dim=1) if flat.numel() else flat.new_zeros(len(flat))
        exponents = torch.frexp(largest).exponent.clamp(min=_LOWEST)
        scaled = flat * _power_of_two(_TOP - exponents)[:, None]
        return cls(scaled.half().reshape(values.shape), exponents.to(torch.int16).reshape(groups))

    def restored(self) -> Tensor:
        """float32, of the original shape."""
        powers = _power_of_two(self.exponents.int() - _TOP)
        spread = powers.reshape(*powers.shape, *[1] * (self.values.ndim - powers.ndim))
        return self.values.float() * spread


def _power_of_two(exponents: Tensor) -> Tensor:
    """2**e in float32 from its bits: exact on every machine, which a library's ``pow`` need not be."""
    return ((exponents.int() + 127) << 23).view(torch.float32)


def pack(tensors: Mapping[str, Halves | Tensor], facts: Mapping[str, Any]) -> bytes:
    """One record: tensors and what is to be known about them, compressed, behind a checksum of it all.

    Args:
        tensors: By name; `Halves`, or tensors of any type that numpy knows.
        facts: Plain data for JSON.
    """
    arrays: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, Halves):
            arrays[name], arrays[f"{name}.exponents"] = tensor.values, tensor.exponents
        else:
            arrays[name] = tensor.detach().cpu()
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    frames: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for name, tensor in arrays.items():
        array = tensor.contiguous().numpy()
        shapes[name] = [array.dtype.str, list(array.shape)]
        planes = np.ascontiguousarray(array.reshape(array.size, 1).view(np.uint8).T)
        for number, plane in enumerate(planes):
            frames[f"{name}/{number}"] = np.frombuffer(compressor.compress(plane.data), dtype=np.uint8)
    header = json.dumps({"facts": dict(facts), "tensors": shapes}, sort_keys=True)
    body = bytes(save_arrays(frames, metadata={"record": header}))
    return zlib.crc32(body).to_bytes(_CHECKSUM, "little") + body


def unpack(record: bytes) -> tuple[dict[str, Halves | Tensor], dict[str, Any]]:
    """Tensors and facts of `pack`.

    Raises:
        BadCache: The bytes are not what was packed.
    """
    body = record[_CHECKSUM:]
    if zlib.crc32(body).to_bytes(_CHECKSUM, "little") != record[:_CHECKSUM]:
        raise BadCache("a record of the feature cache is damaged (its checksum is wrong); it must be made anew")
    try:
        header = json.loads(_metadata(body)["record"])
        frames = load_arrays(body)
        decompressor = zstandard.ZstdDecompressor()
        arrays = {}
        for name, (dtype, shape) in header["tensors"].items():
            array = np.empty(shape, dtype=np.dtype(dtype))
            size = array.dtype.itemsize
            planes = [decompressor.decompress(frames[f"{name}/{number}"].data) for number in range(size)]
            joined = np.stack([np.frombuffer(plane, dtype=np.uint8) for plane in planes], axis=1)
            arrays[name] = torch.from_numpy(joined.reshape(-1).view(array.dtype).reshape(shape))
    except (SafetensorError, zstandard.ZstdError, ValueError, KeyError, TypeError, UnicodeDecodeError) as exc:
        raise BadCache(f"a record of the feature cache is damaged ({exc}); it must be made anew") from exc
    tensors: dict[str, Halves | Tensor] = {
        name: Halves(array, arrays[f"{name}.exponents"]) if f"{name}.exponents" in arrays else array
        for name, array in arrays.items()
        if not name.endswith(".exponents")
    }
    return tensors, header["facts"]


def _metadata(record: bytes) -> dict[str, str]:
    """The text entries of safetensors in memory: eight bytes of length, then JSON."""
    length = int.from_bytes(record[:8], "little")
    metadata: dict[str, str] = json.loads(record[8 : 8 + length])["__metadata__"]
    return metadata
