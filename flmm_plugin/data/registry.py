"""What each benchmark needs: files, sources, licences, sizes. Facts only; the modules beside this one act on them.

A *part* is one file or folder, looked for in several places under the data root because mirrors lay it out differently;
the readers in `flmm_plugin.datasets` look in the same places. Sizes and hashes are those of the official archives; None
where nobody states one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flmm_plugin.datasets.viscot import TABLE_SETS
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.nearest import did_you_mean


@dataclass(frozen=True)
class Archive:
    """One file on the web.

    Attributes:
        urls: Where it is, best first; the others are mirrors.
        size: Bytes.
        sha256: Hex digest.
        into: Folder under the root that it is unpacked into; "" for the root.
        file: Path under the root that it is saved as, for a file that is no archive.
        inner: Archives inside it that are unpacked too: name -> folder under the root.
    """

    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    into: str = ""
    file: str | None = None
    inner: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """File name of the download."""
        return self.urls[0].rsplit("/", 1)[1]


@dataclass(frozen=True)
class Hub:
    """Files of a data set on the Hugging Face hub; `huggingface_hub` resumes and verifies."""

    repo: str
    into: str
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One file or folder that a benchmark needs.

    Attributes:
        what: In words.
        places: Paths under the root; the first that exists counts.
        licence: Of this part.
        source: How to fetch it; None where a form must be filled in or a page be visited.
        how: What to do by hand, where `source` is None.
        optional: Tasks run without it.
        comes_along: Whether another part's archive brings it.
    """

    what: str
    places: tuple[str, ...]
    licence: str
    source: Archive | Hub | None = None
    how: str = ""
    optional: bool = False
    comes_along: bool = False

    @property
    def size(self) -> int | None:
        """Bytes of the download, if stated."""
        return self.source.size if isinstance(self.source, Archive) else None

    def found(self, root: Path) -> Path | None:
        """The first of its places under a root that exists, None if none does."""
        return next((root / place for place in self.places if (root / place).exists()), None)


@dataclass(frozen=True)
class Benchmark:
    """A data set with the tasks that read it.

    Attributes:
        name: As given to ``flmm data``.
        title: In words.
        tasks: What to give to ``lmms_eval --tasks``.
        paper: Who made it.
        parts: What it needs.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    paper: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of all downloads whose size is stated."""
        return sum(part.size or 0 for part in self.parts)

    def here(self, root: Path) -> str:
        """How many of the parts that its tasks cannot do without are under a root, as every listing says it.

        Returns:
            ``3 of 5 parts``: three are there, two are missing.
        """
        needed = [part for part in self.parts if not part.optional]
        return f"{sum(part.found(root) is not None for part in needed)} of {len(needed)} parts"

    def is_here(self, root: Path) -> bool:
        """Whether every part that its tasks cannot do without is under a root."""
        return all(part.optional or part.found(root) is not None for part in self.parts)


_COCO_PICTURES = "pictures: Flickr terms of use; COCO annotations: CC BY 4.0"
_COCO = "http://images.cocodataset.org"
_REFER = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
_REFER_KEPT = {"refcoco": "20220413011718", "refcoco+": "20220413011656", "refcocog": "20220413012904"}
_VISCOT = (
    "https://raw.githubusercontent.com/deepcs233/Visual-CoT/83212ae474ab46b70048a6df6a386cff6589ff92/viscot_benchmark"
)

_TRAIN2014 = Part(
    "pictures of COCO train2014",
    ("coco/train2014", "train2014", "images/mscoco/images/train2014"),
    _COCO_PICTURES,
    Archive(
        (f"{_COCO}/zips/train2014.zip",),
        13510573713,
        "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
        into="coco",
    ),
)


def _refer(name: str, title: str, by: str, splits: tuple[str, ...]) -> Benchmark:
    kept = f"https://web.archive.org/web/{_REFER_KEPT[name]}id_/{_REFER}/{name}.zip"
    annotations = Part(
        f"annotations of {title}",
        (f"coco/{name}/refs({by}).p", f"{name}/refs({by}).p"),
        "as its page says (research use)",
        Archive((f"{_REFER}/{name}.zip", kept), into="coco"),
    )
    instances = Part(
        f"objects of {title}",
        (f"coco/{name}/instances.json", f"{name}/instances.json"),
        _COCO_PICTURES,
        how="part of the same archive as the annotations",
        comes_along=True,
    )
    tasks = tuple(f"flmm_{name}_{split}{suffix}" for suffix in ("", "_per_sentence") for split in splits)
    paper = "Mao et al. 2016, Nagaraja et al. 2016" if name == "refcocog" else "Yu et al. 2016"
    return Benchmark(name, title, (f"flmm_{name}_seg", *tasks), paper, (annotations, instances, _TRAIN2014))


_VISCOT_FILES = {
    "benchmark/docvqa.json": (736581, "53f461a6244c81e282b56b72f371633cc5bb56ccb133de547396255f40649da5"),
    "benchmark/textcap.json": (724082, "7dbce0d799ee33e262db2db5f92e00bdded01e22e871495f70272c9a07f2249b"),
    "benchmark/textvqa.json": (434086, "b2e12f5c7c5e03ef466e6b852a2ebc9703bd4831116008c41faf14f66cb31478"),
    "benchmark/dude.json": (531382, "bbba0f79f542dc765347a63a71b0bf8e2f6a19a3cfa519800064e0038c01eb49"),
    "benchmark/sroie.json": (583612, "5641172d45b29db01c9ae8fa7325438c3a60053b96aa4b624cfd424c0bb4b4df"),
    "benchmark/infographicsvqa.json": (309157, "c2024e64d157031009549e2ae1c372438e194d65081051effdd4cdfd6dfac312"),
    "benchmark_det/docvqa.jsonl": (182364, "e285f4febc0237d8bf8eb29e810bbab5623ed8e35dffbf7604acaf4555abfb5d"),
    "benchmark_det/textcap.jsonl": (237421, "2357171ca2bd7820a0bfa016933dea128426b4b324deec067b9c256143ef3ba6"),
    "benchmark_det/textvqa.jsonl": (133278, "49989fe731546efebab72a6408943196d6da995df1626402a5613212147be8ba"),
    "benchmark_det/dude.jsonl": (137184, "7803ca08a2c66793012850c5adfb27a7c29290f74c30899d124e330c8b24ce64"),
    "benchmark_det/sroie.jsonl": (146976, "b3182bbf19b009cfd8db367b0d40d1a2fa722731a4eb47899765c72c5b7416e9"),
    "benchmark_det/infographicsvqa.jsonl": (
        101955,
        "861391b99ed1289f23714a2235b333c101aaa179bf53dde99cfc1da05f8a8a24",
    ),
}
_VISCOT_PAGES = {
    "docvqa": "register at https://www.docvqa.org/datasets/docvqa (CC BY 4.0 for research)",
    "textvqa": "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip (OpenImages: CC BY 2.0); TextCaps' "
    "pictures are the same",
    "dude": "https://huggingface.co/datasets/jordyvl/DUDE_loader, first page of each document as <id>_0.jpg",
    "sroie": "register at https://rrc.cvc.uab.es/?ch=13&com=downloads",
    "infographicsvqa": "register at https://www.docvqa.org/datasets/infographicvqa",
}


def _viscot() -> Benchmark:
    parts = []
    homes = ("viscot", "viscot_benchmark", "Visual-CoT/viscot_benchmark", "viscot/viscot_benchmark")
    for file, (size, digest) in _VISCOT_FILES.items():
        places = (*(f"{home}/{file}" for home in homes), file)
        source = Archive((f"{_VISCOT}/{file}",), size, digest, file=f"viscot/{file}")
        parts.append(
            Part(f"Visual-CoT {file}", places, "Apache-2.0", source, optional=file.startswith("benchmark_det"))
        )
    shown = ("viscot/cot", "cot", "Visual-CoT/playground/data/cot", "playground/data/cot", "images")
    for name, page in _VISCOT_PAGES.items():
        places = tuple(f"{home}/{name}" for home in (*shown, "viscot/playground/data/cot"))
        how = f"{page}; put the pictures, flat, into viscot/cot/{name}"
        parts.append(Part(f"pictures of {name}", places, "as its page says", how=how))
    sets = tuple(f"flmm_viscot_{name}" for name in TABLE_SETS)
    return Benchmark(
        "viscot",
        "Visual-CoT benchmark, the six sets of table 4",
        ("flmm_viscot", "flmm_viscot_v2", "flmm_viscot_direct", *sets),
        "Shao et al. 2024 (arXiv 2403.16999)",
        tuple(parts),
    )


_PNG_HOMES = ("panoptic_narrative_grounding/", "coco/", "png/", "")


def _png_places(*patterns: str) -> tuple[str, ...]:
    return tuple(home + pattern for home in _PNG_HOMES for pattern in patterns)


_PNG = Benchmark(
    "png",
    "Panoptic Narrative Grounding, val2017",
    ("flmm_png", "flmm_keywords"),
    "Gonzalez et al. 2021 (arXiv 2109.04988)",
    (
        Part(
            "narratives",
            _png_places("annotations/png_coco_val2017.json", "png_coco_val2017.json"),
            "as its page says (research use)",
            how="download png_coco_val2017.json from https://bcv-uniandes.github.io/panoptic-narrative-grounding/ into "
            "coco/annotations",
        ),
        Part(
            "panoptic segments of COCO val2017",
            _png_places("annotations/panoptic_val2017.json", "panoptic_val2017.json"),
            "CC BY 4.0",
            Archive(
                (f"{_COCO}/annotations/panoptic_annotations_trainval2017.zip",),
                860725834,
                "c05f76d2129b6b561eb70efe16e7006df62f73fb92889132d373b9d90e31a370",
                into="coco",
                inner={"annotations/panoptic_val2017.zip": "coco/annotations"},
            ),
        ),
        Part(
            "panoptic maps of COCO val2017",
            _png_places(
                "annotations/panoptic_segmentation/val2017", "annotations/panoptic_val2017", "panoptic_val2017"
            ),
            "CC BY 4.0",
            how="inside the same archive as the panoptic segments; downloading those unpacks it",
            comes_along=True,
        ),
        Part(
            "pictures of COCO val2017",
            _png_places("images/val2017", "val2017"),
            _COCO_PICTURES,
            Archive(
                (f"{_COCO}/zips/val2017.zip",),
                815585330,
                "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                into="coco",
            ),
        ),
    ),
)

_GCG = Benchmark(
    "gcg",
    "GranD-f: grounded conversation generation, val and test",
    ("flmm_gcg", "flmm_gcg_val", "flmm_gcg_test"),
    "Rasheed et al. 2024 (arXiv 2311.03356)",
    (
        *(
            Part(
                f"{kind} of {split}",
                tuple(
                    f"{folder}/{split}_gcg_coco_{kind}_gt.json"
                    for folder in ("GranDf/annotations/val_test", "annotations/val_test", "GranDf/annotations")
                ),
                "Apache-2.0",
                Hub("MBZUAI/GranD-f", "GranDf/annotations/val_test", (f"*{split}_gcg_coco_{kind}_gt.json",)),
            )
            for split in ("val", "test")
            for kind in ("caption", "mask")
        ),
        Part(
            "pictures (SA-1B's) of val and test",
            ("GranDf_HA_images/val_test", "GranDf/GranDf_HA_images/val_test", "images/GranDf_HA_images/val_test"),
            "SA-1B research licence",
            how="the archive of human-annotated pictures that GLaMM's data page "
            "(https://github.com/mbzuai-oryx/groundingLMM/blob/main/docs/datasets.md) links; unpack it as "
            "GranDf_HA_images/val_test",
        ),
    ),
)

_REASONSEG = Benchmark(
    "reasonseg",
    "ReasonSeg, val and test",
    ("flmm_reasonseg_val", "flmm_reasonseg_test"),
    "Lai et al. 2024 (arXiv 2308.00692)",
    tuple(
        Part(
            f"{split}: pairs of <name>.jpg and <name>.json",
            tuple(f"{folder}/{split}" for folder in ("reason_seg/ReasonSeg", "ReasonSeg", "reasonseg")),
            "Apache-2.0 (annotations); pictures: OpenImages and ScanNet terms",
            how=f"{split}.zip of the Google Drive folder that https://github.com/dvlab-research/LISA links; unpack it "
            "into ReasonSeg",
        )
        for split in ("val", "test")
    ),
)


def _hub(name: str, title: str, repo: str, tasks: tuple[str, ...], paper: str) -> Benchmark:
    part = Part(f"{repo} (parquet)", (repo,), "as its page says", Hub(repo, repo, ("data/*", "README.md")))
    return Benchmark(name, title, tasks, paper, (part,))


#: In the order of the paper's tables.
BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        _refer("refcoco", "RefCOCO", "unc", ("val", "testA", "testB")),
        _refer("refcoco+", "RefCOCO+", "unc", ("val", "testA", "testB")),
        _refer("refcocog", "RefCOCOg", "umd", ("val", "test")),
        _PNG,
        _REASONSEG,
        _GCG,
        _viscot(),
        _hub(
            "pope",
            "POPE",
            "lmms-lab-encoder/POPE",
            ("pope", "flmm_pope"),
            "Li et al. 2023 (arXiv 2305.10355)",
        ),
        _hub("mme", "MME", "lmms-lab-encoder/MME", ("mme",), "Fu et al. 2023 (arXiv 2306.13394)"),
    )
}


def benchmark_of(name: str) -> Benchmark:
    """A benchmark by name.

    Raises:
        UnknownArgument: No such benchmark; the nearest one is offered.
    """
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    hint = did_you_mean(name, BENCHMARKS) or "."
    raise UnknownArgument(f"no benchmark {name!r}{hint} Known: {', '.join(BENCHMARKS)}, or all")
