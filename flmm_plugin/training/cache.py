"""Keep on disk what the frozen models say about a sample, so that it is computed once.

Two stores under one folder. ``words-*``: attention and hidden states, one record per sample, of one frozen LMM.
``pictures-*``: SAM's embeddings, one record per image however many samples show it, and the same ones for every LMM.
A record's address is a hash of what went in (the bytes of the image's file, the texts); its store is named after a hash
of everything else that decides what comes out. So a cache never has to be invalidated: other weights, other
preprocessing or another version of the capture look elsewhere.

`CachedReader` stands before a `FrozenReader`. It rounds what it reads even where nothing can be kept any more: what a
step sees is the same whether features came from the disk, were just computed, or did not fit under the cap.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.errors import BadCache, BadImage, EmptyPhrase, FlmmError
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import ImageEmbedding
from flmm_plugin.training.features import FrozenFeatures, FrozenReader, rounded_embedding
from flmm_plugin.training.samples import TrainingSample
from flmm_plugin.training.store import DiskCap, RecordStore, ScaledFloat16, pack, size_text, unpack

PROBES = 8  # samples that an estimate reads
_SPARE = 0.95  # a disk that is filled to the last byte takes the checkpoints of the run down with it


@dataclass(frozen=True)
class Address:
    """Addresses of the two records of a sample."""

    words: str
    picture: str


class FeatureCache:
    """Features on disk, for many processes at once.

    Args:
        folder: Holds all caches; made if need be.
        words_identity: Result of `FrozenReader.words_identity`; other models have other stores.
        picture_identity: Result of `FrozenReader.picture_identity`; None: heads without a refiner.
        cap_bytes: Most that all files in the folder may take together; None: no limit.
    """

    def __init__(
        self,
        folder: str | PathLike[str],
        words_identity: Mapping[str, Any],
        picture_identity: Mapping[str, Any] | None,
        *,
        cap_bytes: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        files.make_folder(self.folder)
        self.cap = DiskCap(self.folder, cap_bytes)
        self.words = RecordStore(self.folder, "words", words_identity, cap=self.cap)
        self.pictures: RecordStore | None = None
        if picture_identity is not None:
            self.pictures = RecordStore(self.folder, "pictures", picture_identity, cap=self.cap)
        self._hashes: dict[Path, tuple[tuple[int, ...], str]] = {}

    @classmethod
    def of_reader(cls, folder: str | PathLike[str], reader: FrozenReader, **options: Any) -> FeatureCache:
        """Open the cache of what a reader reads; options as for the class."""
        return cls(folder, reader.words_identity(), reader.picture_identity(), **options)

    def address(self, sample: TrainingSample) -> Address:
        """Return where a sample's records are, or would be.

        Raises:
            BadImage: The image's file cannot be read.
        """
        picture = self._hash(sample.image_path)
        words = hashlib.sha256(f"{picture}\n{sample.content}".encode()).hexdigest()
        return Address(words, picture)

    def __contains__(self, address: Address) -> bool:
        return address.words in self.words and (self.pictures is None or address.picture in self.pictures)

    def get_words(self, address: Address) -> FrozenFeatures | None:
        """Return everything but the embedding; None if it is not there."""
        found = self.words.get(address.words)
        return None if found is None else _words_of(*found)

    def get_picture(self, address: Address) -> ImageEmbedding | None:
        """Return the embedding; None if it is not there."""
        found = None if self.pictures is None else self.pictures.get(address.picture)
        return None if found is None else _picture_of(*found)

    def put_words(self, address: Address, features: FrozenFeatures) -> bool:
        """Keep everything but the embedding; False where there is no room."""
        return self.words.put(address.words, _words_record(features))

    def put_picture(self, address: Address, embedding: ImageEmbedding) -> bool:
        """Keep an embedding; False where there is no room."""
        return self.pictures is not None and self.pictures.put(address.picture, _picture_record(embedding))

    def present_bytes(self) -> int:
        """Return the bytes on disk for these models; `DiskCap.used` counts those of others too."""
        pictures = 0 if self.pictures is None else self.pictures.bytes_on_disk()
        return self.words.bytes_on_disk() + pictures

    @property
    def full(self) -> bool:
        """True once nothing more is kept: the cap is reached, or the disk is full."""
        return self.cap.full

    def _hash(self, path: Path) -> str:
        """Return the SHA-256 of an image's file, read once as long as it stays the same file, unchanged."""
        try:
            stat = path.stat()
            # Size and time of a file may be set back; the time of its last change of any kind may not.
            state = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            known = self._hashes.get(path)
            if known is None or known[0] != state:
                known = (state, file_digest(path))
        except OSError as exc:
            raise BadImage(f"the picture {str(path)!r} cannot be read: {exc}") from exc
        self._hashes[path] = known
        return known[1]


@dataclass
class Counts:
    """Records that a `CachedReader` took from the cache, computed and kept, computed and did not keep."""

    found: int = 0
    kept: int = 0
    not_kept: int = 0


class CachedReader:
    """Reads features from the cache, or with the frozen models where they are not in it (and keeps them)."""

    def __init__(self, reader: FrozenReader, cache: FeatureCache) -> None:
        self.reader, self.cache = reader, cache
        self.counts = Counts()

    def read(self, sample: TrainingSample) -> FrozenFeatures:
        """Return the features of a sample, rounded as they are kept; on the CPU if found. Raises as `FrozenReader`."""
        address = self.cache.address(sample)
        words, embedding = self.cache.get_words(address), self.cache.get_picture(address)
        wants_picture = self.cache.pictures is not None
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
        self.counts.kept += kept
        self.counts.not_kept += not kept


# Features as records.


def _words_record(features: FrozenFeatures) -> bytes:
    tensors: dict[str, ScaledFloat16 | Tensor] = {
        "attention": ScaledFloat16.of(features.attention, 2),
        "hidden": ScaledFloat16.of(torch.cat(features.hidden), 1),
    }
    if features.selector_hidden is not None and features.selector_labels is not None:
        tensors["selector_hidden"] = ScaledFloat16.of(features.selector_hidden, 1)
        tensors["selector_labels"] = features.selector_labels
    return pack(tensors, {"grid": asdict(features.grid), "sizes": [len(one) for one in features.hidden]})


def _words_of(tensors: Mapping[str, ScaledFloat16 | Tensor], facts: Mapping[str, Any]) -> FrozenFeatures:
    restored = {name: _restored(tensor) for name, tensor in tensors.items()}
    return FrozenFeatures(
        restored["attention"],
        restored["hidden"].split(facts["sizes"]),
        ImageGrid(**facts["grid"]),
        None,
        restored.get("selector_hidden"),
        restored.get("selector_labels"),
    )


def _picture_record(embedding: ImageEmbedding) -> bytes:
    facts = {"input_size": list(embedding.input_size), "original_size": list(embedding.original_size)}
    return pack({"features": ScaledFloat16.of(embedding.features, 2)}, facts)


def _picture_of(tensors: Mapping[str, ScaledFloat16 | Tensor], facts: Mapping[str, Any]) -> ImageEmbedding:
    input_size, original_size = facts["input_size"], facts["original_size"]
    return ImageEmbedding(
        _restored(tensors["features"]), (input_size[0], input_size[1]), (original_size[0], original_size[1])
    )


def _restored(tensor: ScaledFloat16 | Tensor) -> Tensor:
    return tensor.restored() if isinstance(tensor, ScaledFloat16) else tensor


# Before the filling: how much a cache takes.


@dataclass(frozen=True)
class CacheEstimate:
    """Estimated size and cost of a cache of some samples."""

    folder: Path
    samples: int
    phrases: int
    pictures: int  # each image once, however many samples show it
    probed: int  # samples that were read for the estimate
    phrase_bytes: float  # on disk, of what the LMM says about one phrase
    picture_bytes: float  # on disk, of SAM's embedding of one image
    read_seconds: float  # to compute the features of one sample
    write_seconds: float  # to round and compress them
    load_seconds: float  # to read and unpack them again
    present_bytes: int  # held already for the same models
    used_bytes: int  # of all files in the folder
    free_bytes: int  # of the disk
    cap_bytes: int | None  # most that all files in the folder may take; None: no limit

    @property
    def total_bytes(self) -> float:
        """Bytes of the complete cache."""
        return self.phrases * self.phrase_bytes + self.pictures * self.picture_bytes

    @property
    def missing_bytes(self) -> float:
        """Bytes that are still to be written."""
        return max(0.0, self.total_bytes - self.present_bytes)

    @property
    def share(self) -> float:
        """Part of the cache, 0..1, that the cap lets in."""
        if self.cap_bytes is None or self.total_bytes == 0:
            return 1.0
        room = self.present_bytes + max(0, self.cap_bytes - self.used_bytes)
        return min(1.0, room / self.total_bytes)

    @property
    def break_even(self) -> float:
        """Epochs after which filling and using the cache was no slower than doing without; infinite if it never is."""
        saved = self.read_seconds - self.load_seconds
        return 1 + self.write_seconds / saved if saved > 0 else float("inf")

    def check_room(self) -> None:
        """Refuse a cache that the disk cannot hold.

        Raises:
            BadCache: Says what to do instead.
        """
        wanted = self.missing_bytes
        if self.cap_bytes is not None:
            wanted = min(wanted, max(0, self.cap_bytes - self.used_bytes))
        room = self.free_bytes * _SPARE
        if wanted > room:
            possible = int((self.used_bytes + room) / 1e9)
            raise BadCache(
                f"the feature cache would take {size_text(wanted)} more, the disk of {self.folder} has "
                f"{size_text(self.free_bytes)} free: put it elsewhere with cache.folder=..., keep a part of it with "
                f"cache.cap_gb={possible}, or train without it: --no-cache"
            )

    def as_text(self) -> str:
        """Write a few lines for people."""
        cap = "no cap" if self.cap_bytes is None else f"cap {size_text(self.cap_bytes)}: {100 * self.share:.0f} % fit"
        pays = f"pays from epoch {self.break_even:.1f} on" if self.break_even != float("inf") else "never pays"
        return "\n".join(
            [
                f"feature cache in {self.folder} ({self.probed} samples were read to estimate)",
                f"  {self.samples:,} samples, {self.phrases:,} phrases, {self.pictures:,} pictures",
                f"  {size_text(self.phrase_bytes)} a phrase, {size_text(self.picture_bytes)} a picture: "
                f"{size_text(self.total_bytes)} in all, {size_text(self.present_bytes)} there already",
                f"  {cap}; {size_text(self.free_bytes)} free on its disk",
                f"  a sample: {self.read_seconds:.3g} s by the models, {self.load_seconds:.3g} s to unpack; {pays}",
            ]
        )


def estimate(
    reader: FrozenReader, cache: FeatureCache, samples: Sequence[TrainingSample], *, probes: int = PROBES
) -> CacheEstimate:
    """Read a few samples, evenly spread, and scale what their records take to all of them; nothing is written.

    Args:
        reader: Reads with the frozen models.
        cache: The cache that would be filled.
        samples: All samples that will be read.
        probes: Number of samples to read; unusable ones are passed over.

    Raises:
        EmptyPhrase: No probed sample can be used.
    """
    phrases = words = embeddings = probed = 0
    read = write = load = 0.0
    for sample in _spread(samples, probes):
        try:
            if not probed:
                reader.read(sample)  # the first pass through a model is not typical
                if reader.heads.mask_refiner is not None:
                    reader.heads.mask_refiner.clear_cache()  # or the next one would find the embedding there
            began = time.perf_counter()
            features = reader.read(sample).to("cpu")
            computed = time.perf_counter()
            words_record = _words_record(features)
            picture_record = None if features.embedding is None else _picture_record(features.embedding)
            written = time.perf_counter()
            _words_of(*unpack(words_record))
            if picture_record is not None:
                _picture_of(*unpack(picture_record))
            loaded = time.perf_counter()
        except FlmmError:
            continue
        probed += 1
        phrases += len(features.hidden)
        words += len(words_record)
        embeddings += len(picture_record or b"")
        read += computed - began
        write += written - computed
        load += loaded - written
    if not probed:
        raise EmptyPhrase(
            f"none of the {min(probes, len(samples))} samples that were tried can be used; check the data"
        )
    return CacheEstimate(
        folder=cache.folder,
        samples=len(samples),
        phrases=sum(len(sample.grounded) for sample in samples),
        pictures=len({sample.image_path for sample in samples}),
        probed=probed,
        phrase_bytes=words / phrases,
        picture_bytes=embeddings / probed,
        read_seconds=read / probed,
        write_seconds=write / probed,
        load_seconds=load / probed,
        present_bytes=cache.present_bytes(),
        used_bytes=cache.cap.used(),
        free_bytes=shutil.disk_usage(cache.folder).free,
        cap_bytes=cache.cap.limit,
    )


def _spread(samples: Sequence[TrainingSample], count: int) -> Iterator[TrainingSample]:
    """Yield ``count`` samples, evenly spread."""
    step = max(1.0, len(samples) / max(1, count))
    for place in range(min(count, len(samples))):
        yield samples[int(place * step)]


# The filling, by many processes.


@dataclass
class BuildReport:
    """Counts of one process that filled a cache."""

    samples: int = 0  # its share
    found: int = 0  # samples that were there already
    read: int = 0  # samples that were read from the models
    seconds: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)  # keys of samples that could not be used, and why
    full: bool = False  # it stopped because nothing more is kept


def build(
    reader: CachedReader,
    samples: Sequence[TrainingSample],
    *,
    rank: int = 0,
    processes: int = 1,
    on_problem: Callable[[TrainingSample, FlmmError], None] | None = None,
    progress: bool = True,
) -> BuildReport:
    """Fill a cache with what is not in it yet; every process takes every n-th sample.

    Args:
        reader: Reads with the frozen models, and keeps what it reads.
        samples: All samples, the same in every process.
        rank: Index of this process, from 0 to below ``processes``.
        processes: Number of processes that fill the cache together.
        on_problem: Called with a sample that cannot be used; None: the first one ends the build.
        progress: Show a bar (the first process does).

    Returns:
        What this process did. It stops early where the cap leaves no room.
    """
    from tqdm import tqdm

    own = range(rank, len(samples), processes)
    report, cache = BuildReport(samples=len(own)), reader.cache
    began = time.perf_counter()
    share = f" ({processes} processes, the share of one)" if processes > 1 else ""
    bar = tqdm(own, desc=f"read the frozen models{share}", unit="sample", disable=not progress or rank != 0)
    try:
        for index in bar:
            sample = samples[index]
            try:
                if cache.address(sample) in cache:
                    report.found += 1
                    continue
                reader.read(sample)
            except BadCache:
                raise
            except FlmmError as problem:
                report.problems[sample.key] = str(problem)
                if on_problem is None:
                    raise
                on_problem(sample, problem)
                continue
            if cache.full:
                report.full = True
                break
            report.read += 1
    finally:
        bar.close()
        report.seconds = time.perf_counter() - began
    return report
