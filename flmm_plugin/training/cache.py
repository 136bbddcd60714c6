"""The feature cache: what the frozen models say about a sample is computed once and kept on disk.

Two stores under one folder. ``words-*``: attention and hidden states, one record per sample, of one frozen LMM.
``pictures-*``: SAM's embeddings, one record per picture however many samples show it, and the same ones for every LMM.
A record's address is a hash of what went in (the bytes of the picture's file, the texts); its store is named after a
hash of everything else that decides what comes out. So a cache never has to be invalidated: other weights, other
preprocessing or another version of the capture look elsewhere.

`CachedReader` stands before a `FrozenReader`. It rounds what it reads even where nothing can be kept any more: what a
step sees is the same whether features came from the disk, were just computed, or did not fit under the cap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.errors import BadCache, BadImage
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import ImageEmbedding
from flmm_plugin.training.features import FrozenFeatures, FrozenReader, rounded_embedding
from flmm_plugin.training.halves import Halves, pack, unpack
from flmm_plugin.training.samples import TrainingSample
from flmm_plugin.training.shards import SHARD_BYTES, SHARD_SECONDS, DiskCap, ShardStore

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Address:
    """Where the two records of a sample are."""

    words: str
    picture: str


@dataclass(frozen=True)
class Records:
    """The bytes of a sample's two records; no picture where the heads have no refiner."""

    words: bytes
    picture: bytes | None


class PictureHashes:
    """SHA-256 of picture files, each read once as long as it stays the same file, unchanged."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], str]] = {}

    def of(self, path: Path) -> str:
        """Hash of a file's bytes.

        Raises:
            BadImage: There is no such file, or it cannot be read.
        """
        try:
            stat = path.stat()
            # Size and time of a file may be set back; the time of its last change of any kind may not.
            state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            known = self._known.get(str(path))
            if known is not None and known[0] == state:
                return known[1]
            whole = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    whole.update(piece)
        except OSError as exc:
            raise BadImage(f"the picture {str(path)!r} cannot be read: {exc}") from exc
        self._known[str(path)] = (state, whole.hexdigest())
        return whole.hexdigest()


class FeatureCache:
    """Features on disk, for many processes at once.

    Args:
        folder: Of all caches; made if need be.
        words_identity: As `FrozenReader.words_identity` gives it.
        picture_identity: As `FrozenReader.picture_identity` gives it; None: heads without a refiner.
        cap_bytes: Most that all files in the folder may take together; None: no limit.
        shard_bytes, shard_seconds: When a shard is written, see `ShardStore`.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        words_identity: Mapping[str, Any],
        picture_identity: Mapping[str, Any] | None,
        *,
        cap_bytes: int | None = None,
        shard_bytes: int = SHARD_BYTES,
        shard_seconds: float = SHARD_SECONDS,
    ) -> None:
        self.folder = Path(folder)
        files.make_folder(self.folder)
        self.cap = DiskCap(self.folder, cap_bytes)
        options: dict[str, Any] = {"cap": self.cap, "shard_bytes": shard_bytes, "shard_seconds": shard_seconds}
        self.words = ShardStore(self.folder, "words", words_identity, **options)
        self.pictures = (
            None if picture_identity is None else ShardStore(self.folder, "pictures", picture_identity, **options)
        )
        self._hashes = PictureHashes()

    @classmethod
    def of_reader(cls, folder: str | PathLike[str], reader: FrozenReader, **options: Any) -> FeatureCache:
        """The cache of what a reader reads; options as for the class."""
        return cls(folder, reader.words_identity(), reader.picture_identity(), **options)

    def address(self, sample: TrainingSample) -> Address:
        """Where a sample's records are, or would be.

        Raises:
            BadImage: The picture's file cannot be read.
        """
        picture = self._hashes.of(sample.image_path)
        words = hashlib.sha256(f"{picture}\n{sample.content}".encode()).hexdigest()
        return Address(words, picture)

    def __contains__(self, address: Address) -> bool:
        return address.words in self.words and (self.pictures is None or address.picture in self.pictures)

    def get_words(self, address: Address) -> FrozenFeatures | None:
        """Everything but the embedding; None if it is not there."""
        found = _get(self.words, address.words)
        return None if found is None else _words_of(*found)

    def get_picture(self, address: Address) -> ImageEmbedding | None:
        """The embedding; None if it is not there."""
        found = None if self.pictures is None else _get(self.pictures, address.picture)
        return None if found is None else _picture_of(*found)

    def put_words(self, address: Address, features: FrozenFeatures) -> bool:
        """Keep everything but the embedding; False where there is no room."""
        return self.words.put(address.words, _words_record(features))

    def put_picture(self, address: Address, embedding: ImageEmbedding) -> bool:
        """Keep an embedding; False where there is no room."""
        return self.pictures is not None and self.pictures.put(address.picture, _picture_record(embedding))

    @staticmethod
    def records(features: FrozenFeatures) -> Records:
        """What would be written of these features."""
        embedding = features.embedding
        return Records(_words_record(features), None if embedding is None else _picture_record(embedding))

    @staticmethod
    def unpacked(records: Records) -> FrozenFeatures:
        """What would be read back.

        Raises:
            BadCache: The bytes are not those that were written.
        """
        words = _words_of(*unpack(records.words))
        return replace(words, embedding=None if records.picture is None else _picture_of(*unpack(records.picture)))

    def present_bytes(self) -> int:
        """Bytes on disk for these models; `DiskCap.used` counts those of others too."""
        return sum(store.bytes_on_disk() for store in self._stores())

    @property
    def full(self) -> bool:
        """Nothing more is kept: the cap is reached, or the disk is full."""
        return self.cap.full

    def refresh(self) -> None:
        """Take notice of what other processes have written."""
        for store in self._stores():
            store.refresh()

    def flush(self) -> None:
        """Write what is pending."""
        for store in self._stores():
            store.flush()

    def close(self) -> None:
        """Write what is pending; the cache can still be used."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stores(self) -> list[ShardStore]:
        return [self.words] if self.pictures is None else [self.words, self.pictures]


@dataclass
class Counts:
    """What a `CachedReader` did: records taken from the cache, computed and kept, computed and not kept."""

    found: int = 0
    kept: int = 0
    not_kept: int = 0


class CachedReader:
    """Features from the cache, or from the frozen models where they are not in it (and then into it).

    Args:
        reader: What reads.
        cache: Where it is kept.
    """

    def __init__(self, reader: FrozenReader, cache: FeatureCache) -> None:
        self.reader, self.cache = reader, cache
        self.counts = Counts()

    def read(self, sample: TrainingSample) -> FrozenFeatures:
        """Features of one sample, rounded as they are kept; on the CPU if found. Errors as `FrozenReader.read`."""
        address = self.cache.address(sample)
        words, embedding = self.cache.get_words(address), self.cache.get_picture(address)
        wants_picture = self.cache.pictures is not None
        if words is None or (wants_picture and embedding is None):
            self.cache.refresh()
            words = words or self.cache.get_words(address)
            embedding = embedding or self.cache.get_picture(address)
        self.counts.found += (words is not None) + (embedding is not None)
        if words is not None and (embedding is not None or not wants_picture):
            return replace(words, embedding=embedding)
        picture = sample.image_loader()
        if words is None:
            words = self.reader.words(sample, picture).rounded()
            self._count(self.cache.put_words(address, words))
        if wants_picture and embedding is None:
            embedding = self.reader.picture(sample, picture)
            if embedding is None:
                raise BadCache(
                    "the cache expects image embeddings and the reader's heads have no refiner; open it anew"
                )
            embedding = rounded_embedding(embedding)
            self._count(self.cache.put_picture(address, embedding))
        return replace(words, embedding=embedding)

    def _count(self, kept: bool) -> None:
        if kept:
            self.counts.kept += 1
        else:
            self.counts.not_kept += 1


def _get(store: ShardStore, address: str) -> tuple[dict[str, Halves | Tensor], dict[str, Any]] | None:
    record = store.get(address)
    if record is None:
        return None
    try:
        return unpack(record)
    except BadCache as exc:
        store.damaged(address, str(exc))
        return None


def _words_record(features: FrozenFeatures) -> bytes:
    tensors: dict[str, Halves | Tensor] = {
        "attention": Halves.of(features.attention, 2),
        "hidden": Halves.of(torch.cat(features.hidden), 1),
    }
    if features.selector_hidden is not None and features.selector_labels is not None:
        tensors["selector_hidden"] = Halves.of(features.selector_hidden, 1)
        tensors["selector_labels"] = features.selector_labels
    return pack(tensors, {"grid": asdict(features.grid), "sizes": [len(one) for one in features.hidden]})


def _words_of(tensors: Mapping[str, Halves | Tensor], facts: Mapping[str, Any]) -> FrozenFeatures:
    return FrozenFeatures(
        _restored(tensors["attention"]),
        _restored(tensors["hidden"]).split(facts["sizes"]),
        ImageGrid(**facts["grid"]),
        None,
        _restored(tensors["selector_hidden"]) if "selector_hidden" in tensors else None,
        _restored(tensors["selector_labels"]) if "selector_labels" in tensors else None,
    )


def _picture_record(embedding: ImageEmbedding) -> bytes:
    facts = {"input_size": list(embedding.input_size), "original_size": list(embedding.original_size)}
    return pack({"features": Halves.of(embedding.features, 2)}, facts)


def _picture_of(tensors: Mapping[str, Halves | Tensor], facts: Mapping[str, Any]) -> ImageEmbedding:
    input_size, original_size = facts["input_size"], facts["original_size"]
    return ImageEmbedding(
        _restored(tensors["features"]), (input_size[0], input_size[1]), (original_size[0], original_size[1])
    )


def _restored(tensor: Halves | Tensor) -> Tensor:
    return tensor.restored() if isinstance(tensor, Halves) else tensor


def words_bytes(
    maps: int, cells: int, layers: int, hidden_size: int, phrase_tokens: float, text_tokens: float = 0.0
) -> float:
    """Bytes of one phrase before compression: maps, states of its tokens in all layers, share of the selector's states.

    Args:
        maps: Attention maps of a phrase.
        cells: Tokens of the (finest) grid.
        layers: m.
        hidden_size: d.
        phrase_tokens: Tokens of a phrase.
        text_tokens: Tokens of the text that the keyword selector reads, per phrase; 0: it does not learn.
    """
    half, power = 2, 2
    return float(
        maps * (cells * half + power)
        + phrase_tokens * layers * (hidden_size * half + power)
        + text_tokens * (hidden_size * half + power + 1)
    )


def picture_bytes(prompt_dim: int, side: int) -> float:
    """Bytes of one image embedding before compression, ``prompt_dim`` channels of ``side x side``."""
    return float(prompt_dim * (side * side * np.dtype(np.float16).itemsize + 2))
