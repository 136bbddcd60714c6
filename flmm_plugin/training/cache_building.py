"""Before and during the filling of a feature cache: what it will take, and many processes that fill it.

An estimate reads a few samples with the frozen models and scales what their records take to all of them: nothing is
written. Filling skips what is there, so that a killed run goes on where its last shard ended.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flmm_plugin.errors import BadCache, EmptyPhrase, FlmmError
from flmm_plugin.training.cache import CachedReader, FeatureCache
from flmm_plugin.training.features import FrozenReader
from flmm_plugin.training.samples import TrainingSample
from flmm_plugin.training.shards import size_text

OnProblem = Callable[[TrainingSample, FlmmError], None]

PROBES = 8

# A disk that is filled to the last byte takes the checkpoints of the run down with it.
_SPARE = 0.95


@dataclass(frozen=True)
class CacheEstimate:
    """What a cache of some samples will take, in disk and in time.

    Attributes:
        folder: Of the cache.
        samples, phrases, pictures: How many; pictures count once however many samples show them.
        probed: Samples that were read to find out.
        phrase_bytes: Of what the LMM says, per phrase, as it is written.
        picture_bytes: Of SAM's embedding, per picture, as it is written.
        read_seconds: To compute the features of one sample.
        write_seconds: To round and compress them.
        load_seconds: To read and unpack them again.
        present_bytes: What the cache holds already for the same models.
        used_bytes: What all files in the folder take.
        free_bytes: Of the disk.
        cap_bytes: Most that all files in the folder may take; None: no limit.
    """

    folder: Path
    samples: int
    phrases: int
    pictures: int
    probed: int
    phrase_bytes: float
    picture_bytes: float
    read_seconds: float
    write_seconds: float
    load_seconds: float
    present_bytes: int
    used_bytes: int
    free_bytes: int
    cap_bytes: int | None

    @property
    def total_bytes(self) -> float:
        """Of the whole cache."""
        return self.phrases * self.phrase_bytes + self.pictures * self.picture_bytes

    @property
    def missing_bytes(self) -> float:
        """Still to be written."""
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
        """A few lines for people."""
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


@dataclass
class BuildReport:
    """What one process did to fill a cache.

    Attributes:
        samples: Its share.
        found: Samples that were there already.
        read: Samples that were read from the models.
        seconds: It took.
        problems: Keys of samples that could not be used, and why.
        full: It stopped because nothing more is kept.
    """

    samples: int = 0
    found: int = 0
    read: int = 0
    seconds: float = 0.0
    problems: dict[str, str] = field(default_factory=dict)
    full: bool = False


def estimate(
    reader: FrozenReader, cache: FeatureCache, samples: Sequence[TrainingSample], *, probes: int = PROBES
) -> CacheEstimate:
    """Read a few samples, evenly spread, and say what all will take; nothing is written.

    Args:
        reader: With the frozen models.
        cache: Where features will go.
        samples: All that will be read.
        probes: How many to read; unusable ones are passed over.

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
                    reader.heads.mask_refiner.clear_cache()  # or the next one would find the picture there
            began = time.perf_counter()
            features = reader.read(sample).to("cpu")
            computed = time.perf_counter()
            records = cache.records(features)
            written = time.perf_counter()
            cache.unpacked(records)
            loaded = time.perf_counter()
        except FlmmError:
            continue
        probed += 1
        phrases += len(features.hidden)
        words, embeddings = words + len(records.words), embeddings + len(records.picture or b"")
        read, write, load = read + computed - began, write + written - computed, load + loaded - written
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


def build(
    reader: CachedReader,
    samples: Sequence[TrainingSample],
    *,
    rank: int = 0,
    world: int = 1,
    on_problem: OnProblem | None = None,
    progress: bool = True,
) -> BuildReport:
    """Fill a cache; every process takes every ``world``-th sample.

    Args:
        reader: Before the frozen models.
        samples: All samples, the same in every process.
        rank: Which process this is.
        world: How many there are.
        on_problem: Told of a sample that cannot be used; None: the first one ends the build.
        progress: Show a bar (the first process does).

    Returns:
        What this process did. It stops early where the cap leaves no room.
    """
    from tqdm import tqdm

    own = range(rank, len(samples), world)
    report, cache = BuildReport(samples=len(own)), reader.cache
    began = time.perf_counter()
    shown = f" ({world} processes, the share of one)" if world > 1 else ""
    bar = tqdm(own, desc=f"read the frozen models{shown}", unit="sample", disable=not progress or rank != 0)
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
        cache.flush()
        report.seconds = time.perf_counter() - began
    return report


def _spread(samples: Sequence[TrainingSample], count: int) -> Iterator[TrainingSample]:
    """So many samples, evenly spread."""
    step = max(1.0, len(samples) / max(1, count))
    for place in range(min(count, len(samples))):
        yield samples[int(place * step)]
