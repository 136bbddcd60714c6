"""Keep records of tensors as files, which many processes write and read at once.

A record is one file, named after its address. It is written beside its place, flushed to the disk and renamed, so a
killed process leaves whole records only, and loses the one that it was writing. Nothing is ever changed in place: two
processes that make the same record write the same bytes. The lock of the folder is held while a record is written, so
that its size counts exactly against the cap. A damaged record is named, removed, and made anew.

A record's floats are float16 with a shared power of two (`ScaledFloat16`). Plain float16 would ruin them: attention to
one of 576 image tokens is 1e-4 and less, where float16 has few digits left; hidden states of large models exceed its
largest number. So every map (every token's state, every channel) is first multiplied by the power of two that brings
its largest value just under 2**15. That is exact, and leaves the rounding of float16 alone: a relative error of at most
2**-11 for all values down to 2**-29 of the largest. Values of a bfloat16 model have fewer digits than float16: they
come back bit for bit. Upper bytes (sign, exponent, two digits) of neighbours are alike, lower ones are noise: the two
lie apart in the file, which Zstandard compresses faster than a disk in both directions; higher levels gain nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load, save
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.errors import BadCache, OutputFailed

FORMAT = "flmm features 2"
ENDING = ".features"

# The largest value of a group lies in [2**14, 2**15): one below float16's own largest exponent, so that rounding up
# cannot overflow.
_TOP = 15
# A group whose largest value is below this power of two becomes zeros.
_LOWEST = -100
_LEVEL = 1
_CHECKSUM = 4
_COUNT_BYTES = 20  # most digits of the counter, which counts itself

_log = logging.getLogger(__name__)


class DiskCap:
    """Limit on the bytes of all files under ``root`` together; ``full`` once it is reached, or the disk is full.

    A file holds the sum for all processes, because looking at every file takes long. It is made anew by everybody who
    opens the cache, and in between grows before a record is written: a killed process leaves it too large at most.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root, self.limit = root, limit
        self.full = False
        self._counter = root / ".bytes"

    def used(self) -> int:
        """Return the bytes of all files under the root."""
        paths = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        return sum(map(_size, paths))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process in at a time, of all that write to the cache."""
        lock = files.Lock(self.root / ".lock")
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def take(self, size: int) -> bool:
        """Count bytes that will be written; False where they do not fit. The caller is `alone`."""
        if self.limit is None:
            return True
        try:
            used = int(self._counter.read_text())
        except (FileNotFoundError, ValueError):
            used = self.used() + _COUNT_BYTES
        if used + size > self.limit:
            return False
        self._counter.write_text(str(used + size))
        return True

    def recount(self) -> None:
        """Forget the sum: the next `take` looks at every file. The caller is `alone`."""
        self._counter.unlink(missing_ok=True)

    def stop(self, reason: str) -> None:
        """Keep nothing more, and say why, once."""
        if not self.full:
            _log.warning("%s, or what is not in the cache yet is computed again in every epoch", reason)
        self.full = True


class RecordStore:
    """Records of one identity.

    Args:
        root: The cache's folder; the store is a folder in it, named after kind and identity.
        kind: What the records are, e.g. ``words``.
        identity: Everything, as plain data, that the records depend on beside their address. Another identity is
            another folder.
        cap: Shared by all stores of the root; None: no limit.
    """

    def __init__(self, root: Path, kind: str, identity: Mapping[str, Any], *, cap: DiskCap | None = None) -> None:
        text = json.dumps({"format": FORMAT, **identity}, sort_keys=True, indent=1)
        identity_hash = hashlib.sha256(text.encode())
        self.identity = identity_hash.digest()
        self.folder = root / f"{kind}-{identity_hash.hexdigest()[:16]}"
        self.cap = cap or DiskCap(root)
        with files.naming(root), self.cap.alone():  # what tries the folder would be swept away by another process
            files.make_folder(self.folder)
            files.sweep(self.folder)
            described = self.folder / "identity.json"  # for people; records hold the identity themselves
            if not described.exists() or described.read_text(encoding="utf-8", errors="replace") != text:
                files.write(described, text)
            self.cap.recount()

    def __len__(self) -> int:
        return sum(1 for _ in self._records())

    def __contains__(self, address: str) -> bool:
        return self._path(address).exists()

    def get(self, address: str) -> Record | None:
        """Return a record, None if there is none (any more).

        Raises:
            BadCache: Its file cannot be opened; that is no damage, and nothing is removed for it.
        """
        path = self._path(address)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise BadCache(f"{path} cannot be read ({exc}); mend that, or give another cache.folder") from exc
        own = len(self.identity)
        try:
            if content[:own] != self.identity:
                raise BadCache("it was made for another model, other preprocessing or another version")
            return unpack(content[own:])
        except BadCache as exc:
            path.unlink(missing_ok=True)
            _log.warning("%s was damaged (%s) and is removed: what it held is made anew", path, exc)
            return None

    def put(self, address: str, record: bytes) -> bool:
        """Write a record that `pack` made.

        Returns:
            False where the cap is reached, or the disk is full: nothing was kept.

        Raises:
            BadCache: It cannot be written for another reason.
        """
        if address in self:
            return True
        if self.cap.full:
            return False
        content = self.identity + record
        try:
            with files.naming(self.folder), self.cap.alone():
                self.folder.stat()  # what is written into a new one may be half the folder of a run
                if not self.cap.take(len(content)):
                    limit = size_text(self.cap.limit or 0)
                    self.cap.stop(f"the cap of {limit} on {self.cap.root} is reached; raise it")
                    return False
                files.write(self._path(address), content)
        except OutputFailed as exc:
            if getattr(exc.__cause__, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
                raise BadCache(
                    f"{exc}; keep the cache's folder until the run ends, or give another cache.folder"
                ) from exc
            self.cap.stop(f"the disk of {self.cap.root} is full; make room")
            return False
        return True

    def bytes_on_disk(self) -> int:
        """Return the bytes of all records."""
        return sum(map(_size, self._records()))

    def _records(self) -> Iterator[Path]:
        return self.folder.glob(f"*{ENDING}")

    def _path(self, address: str) -> Path:
        return self.folder / f"{address}{ENDING}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process renamed or removed it meanwhile
        return 0


def size_text(size: float) -> str:
    """Write a number of bytes in a unit that leaves a few digits.

    >>> size_text(2_097_152)
    '2.1 MB'
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


@dataclass(frozen=True, eq=False)
class ScaledFloat16:
    """A float tensor as float16 and one power of two per group.

    Attributes:
        values: float16, any shape, on the CPU.
        exponents: int16, the leading dimensions of ``values``; a group are the values that share one.
    """

    values: Tensor
    exponents: Tensor

    @classmethod
    def of(cls, tensor: Tensor, trailing: int) -> ScaledFloat16:
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
        """Return float32 values of the original shape."""
        powers = _power_of_two(self.exponents.int() - _TOP)
        spread = powers.reshape(*powers.shape, *[1] * (self.values.ndim - powers.ndim))
        return self.values.float() * spread


def _power_of_two(exponents: Tensor) -> Tensor:
    """Return 2**e in float32, made from its bits: exact on every machine, which a library's ``pow`` need not be."""
    return ((exponents.int() + 127) << 23).view(torch.float32)


Record = tuple[dict[str, ScaledFloat16 | Tensor], dict[str, Any]]  # tensors by name, and facts about them


def pack(tensors: Mapping[str, ScaledFloat16 | Tensor], facts: Mapping[str, Any]) -> bytes:
    """Write one record: tensors and facts about them, compressed, behind a checksum of it all.

    Args:
        tensors: By name; `ScaledFloat16`, or tensors of any type.
        facts: Plain data that JSON can hold, e.g. sizes.
    """
    text = json.dumps(dict(facts), sort_keys=True).encode()
    stored = {"facts.json": torch.tensor(list(text), dtype=torch.uint8)}
    for name, tensor in tensors.items():
        if isinstance(tensor, ScaledFloat16):
            pairs = tensor.values.contiguous()[..., None].view(torch.uint8)
            stored[f"{name}.bytes"] = pairs.movedim(-1, 0).contiguous()
            stored[f"{name}.exponents"] = tensor.exponents.contiguous()
        else:
            stored[name] = tensor.detach().cpu().contiguous()
    body: bytes = pa.Codec("zstd", compression_level=_LEVEL).compress(save(stored), asbytes=True)
    return zlib.crc32(body).to_bytes(_CHECKSUM, "little") + body


def unpack(record: bytes) -> Record:
    """Return the tensors and facts that `pack` wrote.

    Raises:
        BadCache: The bytes are not what was packed.
    """
    body = record[_CHECKSUM:]
    if zlib.crc32(body).to_bytes(_CHECKSUM, "little") != record[:_CHECKSUM]:
        raise BadCache("a record of the feature cache is damaged (its checksum is wrong); it must be made anew")
    stored = load(pa.CompressedInputStream(pa.BufferReader(body), "zstd").read())
    facts = json.loads(bytes(stored.pop("facts.json").tolist()))
    tensors: dict[str, ScaledFloat16 | Tensor] = {}
    for name, tensor in stored.items():
        whole = name.removesuffix(".bytes")
        if whole != name:
            values = torch.stack((tensor[0], tensor[1]), dim=-1).view(torch.float16).squeeze(-1)
            tensors[whole] = ScaledFloat16(values, stored[f"{whole}.exponents"])
        elif not name.endswith(".exponents"):
            tensors[name] = tensor
    return tensors, facts
