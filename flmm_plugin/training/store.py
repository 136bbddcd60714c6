"""Store tensors as records in sharded safetensors files, which many processes write and read.

A *shard* holds some hundred *records* under their addresses. It is written beside its place, flushed to the disk and
renamed, so that a killed process leaves complete shards or none, and loses at most `SHARD_BYTES` or `SHARD_SECONDS` of
work. Nothing is ever changed in place: processes write shards of their own under names that nobody else has, and the
same record written by two of them is there twice and harms nothing. The lock of the folder is held while a shard is
written, so that its size counts exactly against the cap. A damaged shard is named and removed, and its records are made
anew.

A record's floats are float16 with a shared power of two (`ScaledFloat16`). Plain float16 would ruin them: attention to
one of 576 image tokens is 1e-4 and less, where float16 has few digits left; hidden states of large models exceed its
largest number. So every map (every token's state, every channel) is first multiplied by the power of two that brings
its largest value just under 2**15. That is exact, and leaves the rounding of float16 alone: a relative error of at most
2**-11 for all values down to 2**-29 of the largest. Values of a bfloat16 model have fewer digits than float16: they
come back bit for bit. Upper bytes (sign, exponent, two digits) of neighbours are alike, lower ones are noise: the two
are compressed apart (Zstandard, lowest level), faster than a disk in both directions; higher levels gain nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from safetensors.numpy import save_file
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.errors import BadCache, OutputFailed

FORMAT = "flmm features 1"
SHARD_BYTES = 256 << 20
SHARD_SECONDS = 30.0

# The largest value of a group lies in [2**14, 2**15): one below float16's own largest exponent, so that rounding up
# cannot overflow.
_TOP = 15
# A group whose largest value is below this power of two becomes zeros.
_LOWEST = -100
_LEVEL = 1
_CHECKSUM = 4

_log = logging.getLogger(__name__)


@dataclass
class DiskCap:
    """Limit on the bytes of all files under ``root`` together; ``full`` once it is reached, or the disk is full."""

    root: Path
    limit: int | None = None
    full: bool = False

    def used(self) -> int:
        """Return the bytes of all files under the root."""
        paths = (Path(folder, name) for folder, _, names in os.walk(self.root) for name in names)
        return sum(map(_size, paths))

    def room(self) -> float:
        """Return the bytes that may still be written; without a limit infinitely many."""
        return float("inf") if self.limit is None else max(0, self.limit - self.used())


class ShardStore:
    """Records of one identity.

    Args:
        root: The cache's folder; the store is a folder in it, named after kind and identity.
        kind: What the records are, e.g. ``words``.
        identity: Everything, as plain data, that the records depend on beside their address. Another identity is
            another folder.
        cap: Shared by all stores of the root; None: no limit.
        shard_bytes, shard_seconds: A shard is written when its records have so many bytes, or when the first of them
            has waited so long.
    """

    def __init__(
        self,
        root: Path,
        kind: str,
        identity: Mapping[str, Any],
        *,
        cap: DiskCap | None = None,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
    ) -> None:
        text = json.dumps(identity, sort_keys=True, indent=1)
        self.identity = hashlib.sha256(text.encode()).hexdigest()
        self.folder = root / f"{kind}-{self.identity[:16]}"
        self.cap = cap or DiskCap(root)
        self.shard_bytes, self.shard_seconds = shard_bytes, shard_seconds
        files.make_folder(self.folder)
        self._lock_path = root / ".lock"
        self._where: dict[str, str] = {}
        self._shards: set[str] = set()
        self._pending: dict[str, bytes] = {}
        self._pending_bytes, self._pending_since = 0, 0.0
        self._seen_at = -1
        self._process = os.getpid()
        self._lock = threading.RLock()  # a trainer reads ahead in a thread of its own
        with self._locked():
            self._write_identity(text)
            for left in self.folder.glob("*.part"):  # shards are written under the lock: nobody is at these
                left.unlink(missing_ok=True)
        self.refresh()

    # Reading.

    def __len__(self) -> int:
        return len(self._where.keys() | self._pending.keys())

    def __contains__(self, address: str) -> bool:
        return address in self._pending or address in self._where

    def get(self, address: str) -> bytes | None:
        """Return a record, None if there is none (any more)."""
        pending = self._pending.get(address)
        if pending is not None:
            return pending
        shard = self._where.get(address)
        if shard is None:
            return None
        try:
            with safe_open(self.folder / shard, framework="numpy") as file:
                return bytes(file.get_tensor(address).tobytes())
        except FileNotFoundError:
            with self._alone():
                self._forget(shard)  # another process found it damaged
        except SafetensorError as exc:
            with self._alone():
                self._remove(shard, str(exc))
        except OSError as exc:
            raise self._unreadable(shard, exc) from exc
        return None

    def refresh(self) -> None:
        """Look for shards that other processes have written since; costs a look at the folder's date."""
        with self._alone():
            self._refresh()

    def damaged(self, address: str, reason: str) -> None:
        """Remove a record whose bytes turned out to be wrong; the others of its shard go into another one."""
        with self._alone():
            shard = self._where.get(address)
            if shard is None:
                return
            rescued: dict[str, bytes] = {}
            with (
                contextlib.suppress(SafetensorError, OSError),
                safe_open(self.folder / shard, framework="numpy") as file,
            ):
                for other in set(file.keys()) - {address}:
                    rescued[other] = bytes(file.get_tensor(other).tobytes())
            self._remove(shard, reason, kept=len(rescued))
            self._pending.update(rescued)
            self.flush()

    def _refresh(self) -> None:
        try:
            changed = os.stat(self.folder).st_mtime_ns
            if changed == self._seen_at:
                return
            self._seen_at = changed
            names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".safetensors")}
        except FileNotFoundError as exc:
            raise BadCache(f"{self.folder} is gone; keep the cache's folder until the run ends") from exc
        for gone in self._shards - names:
            self._forget(gone)
        for name in sorted(names - self._shards):
            self._shards.add(name)
            for address in self._addresses(name):
                self._where.setdefault(address, name)

    def _addresses(self, name: str) -> Iterable[str]:
        try:
            with safe_open(self.folder / name, framework="numpy") as file:
                metadata, keys = file.metadata() or {}, list(file.keys())
        except FileNotFoundError:
            return []
        except SafetensorError as exc:
            self._remove(name, str(exc))
            return []
        except OSError as exc:
            raise self._unreadable(name, exc) from exc
        if metadata.get("format") != FORMAT or metadata.get("identity") != self.identity:
            _log.warning(
                "%s was made for another model, other preprocessing or another version and is not used; delete it",
                self.folder / name,
            )
            return []
        return keys

    def _remove(self, name: str, reason: str, kept: int = 0) -> None:
        path = self.folder / name
        self._forget(name)
        path.unlink(missing_ok=True)
        also = f"; its {kept} other records are kept" if kept else ""
        _log.warning("%s was damaged (%s) and is removed: what it held is made anew%s", path, reason, also)

    def _unreadable(self, name: str, exc: OSError) -> BadCache:
        # No damage: too many open files, no permission, a disk that fails. Nothing may be removed for it.
        return BadCache(f"{self.folder / name} cannot be read ({exc}); mend that, or give another cache.folder")

    def _forget(self, name: str) -> None:
        self._shards.discard(name)
        self._where = {address: shard for address, shard in self._where.items() if shard != name}

    # Writing.

    def put(self, address: str, record: bytes) -> bool:
        """Keep a record; it is on disk after the next `flush`, which this calls now and then.

        Returns:
            False where the cap is reached, or the disk is full: nothing was kept.
        """
        with self._alone():
            if address in self:
                return True
            if self.cap.full:
                return False
            if not self._pending:
                self._pending_since = time.monotonic()
            self._pending[address] = record
            self._pending_bytes += len(record)
            waited = time.monotonic() - self._pending_since
            if self._pending_bytes >= self.shard_bytes or waited >= self.shard_seconds:
                self.flush()
            return address in self

    def flush(self) -> None:
        """Write what is pending as one shard; as much of it as the cap allows."""
        with self._alone():
            if not self._pending:
                return
            with self._locked():
                kept = self._within_cap()
                name = f"{uuid.uuid4().hex}.safetensors"
                if kept and self._write(name, kept):
                    self._shards.add(name)
                    self._where.update(dict.fromkeys(kept, name))
            self._pending, self._pending_bytes = {}, 0

    def bytes_on_disk(self) -> int:
        """Return the bytes of the shards that the last `refresh` found."""
        return sum(_size(self.folder / name) for name in self._shards)

    def _within_cap(self) -> dict[str, bytes]:
        room = self.cap.room()
        kept: dict[str, bytes] = {}
        # Eight bytes, JSON with some 150 characters per record, padding: never less than what safetensors writes.
        size = 512
        for address, record in self._pending.items():
            size += len(record) + len(address) + 160
            if size > room:
                self._stop(f"the cap of {size_text(self.cap.limit or 0)} on {self.cap.root} is reached; raise it")
                break
            kept[address] = record
        return kept

    def _write(self, name: str, records: Mapping[str, bytes]) -> bool:
        arrays = {address: np.frombuffer(record, dtype=np.uint8) for address, record in records.items()}
        try:
            with files.new_file(self.folder / name) as part:
                save_file(arrays, part, metadata={"format": FORMAT, "identity": self.identity})
            files.flush(self.folder)
        except (OSError, OutputFailed, SafetensorError) as exc:
            number = getattr(exc.__cause__ or exc, "errno", None)
            if number not in (errno.ENOSPC, errno.EDQUOT) and "No space" not in str(exc):
                raise self._unwritable(exc) from exc
            self._stop(f"the disk of {self.cap.root} is full; make room")
            return False
        return True

    def _stop(self, reason: str) -> None:
        if not self.cap.full:
            _log.warning("%s, or what is not in the cache yet is computed again in every epoch", reason)
        self.cap.full = True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one thread in at a time. A forked process (a data loader's worker) drops the records of its parent."""
        if os.getpid() != self._process:
            self._process, self._lock = os.getpid(), threading.RLock()
            self._pending, self._pending_bytes = {}, 0
        with self._lock:
            yield

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process in at a time, of all that write to the cache."""
        lock = files.Lock(self._lock_path)
        try:
            lock.acquire()
        except OSError as exc:
            raise self._unwritable(exc) from exc
        try:
            yield
        finally:
            lock.release()

    def _unwritable(self, exc: Exception) -> BadCache:
        return BadCache(
            f"{self.folder} cannot be written ({exc}); keep the cache's folder until the run ends, or give another "
            "cache.folder"
        )

    def _write_identity(self, text: str) -> None:
        """Describe the folder for people; shards hold the identity themselves."""
        path = self.folder / "identity.json"
        if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
            files.write(path, text)


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


def pack(tensors: Mapping[str, ScaledFloat16 | Tensor], facts: Mapping[str, Any]) -> bytes:
    """Write one record: tensors and facts about them, compressed, behind a checksum of it all.

    Args:
        tensors: By name; `ScaledFloat16`, or tensors of any type that numpy knows.
        facts: Plain data that JSON can hold, e.g. sizes.
    """
    arrays: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, ScaledFloat16):
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


def unpack(record: bytes) -> tuple[dict[str, ScaledFloat16 | Tensor], dict[str, Any]]:
    """Return the tensors and facts that `pack` wrote.

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
    tensors: dict[str, ScaledFloat16 | Tensor] = {
        name: ScaledFloat16(array, arrays[f"{name}.exponents"]) if f"{name}.exponents" in arrays else array
        for name, array in arrays.items()
        if not name.endswith(".exponents")
    }
    return tensors, header["facts"]


def _metadata(record: bytes) -> dict[str, str]:
    """Return the text entries of safetensors in memory: eight bytes of length, then JSON."""
    length = int.from_bytes(record[:8], "little")
    metadata: dict[str, str] = json.loads(record[8 : 8 + length])["__metadata__"]
    return metadata
