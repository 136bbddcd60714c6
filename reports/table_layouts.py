"""What the paper's tables are made of: columns, and which task and metric of a harness fills each.

A column's *reference protocol* is the one of F-LMM's own published numbers in it. A task may also measure the same
thing by another protocol (one expression at a time instead of a picture's at once, say): it fills a row of its own,
named by its `Source.arm`, and its numbers carry a mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.reports.runs import Harness, Run, TaskResult


@dataclass(frozen=True)
class Source:
    """One way to fill a column.

    Attributes:
        task: Pattern of the task's whole name.
        metrics: Names of the metric; the first that the task has counts.
        protocol: Key of `flmm_plugin.reports.paper_numbers.PROTOCOLS`.
        variant: Name of the row it belongs to, "" for the run's plain row.
        harness: Whose task it is; a task of this package (``flmm_...``) is anybody's.
        scale: Factor to the column's unit.
        fraction: Whether a value of at most 1 is a share of 1 (some data sets of VLMEvalKit write percentages so).
        visual_cot: Which visual chain of thought the run must have answered with ("" for none); None: whichever.
    """

    task: str
    metrics: tuple[str, ...]
    protocol: str
    variant: str = ""
    harness: Harness = "lmms-eval"
    scale: float = 1.0
    fraction: bool = False
    visual_cot: str | None = None

    def read(self, run: Run) -> tuple[TaskResult, str, float] | None:
        """Task, metric and value in the column's unit; None if the run has no such number."""
        # This package's own tasks are the same in every harness: the same documents, requests and scoring.
        if run.harness != self.harness and not self.task.startswith("flmm_"):
            return None
        if self.visual_cot not in (None, run.visual_cot):
            return None
        for name, task in run.tasks.items():
            if not re.fullmatch(self.task, name):
                continue
            for metric in self.metrics:
                if metric in task.metrics:
                    value = task.metrics[metric]
                    factor = 100.0 if self.fraction and abs(value) <= 1 else self.scale
                    return task, metric, value * factor
        return None


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: As in ``paper_numbers.csv``.
        group: Heading above it.
        header: Heading of the column itself.
        sources: In order of preference, per arm.
        protocol: The reference protocol.
        digits: Decimals of a measured number.
        tasks: lmms-eval tasks that fill it by the reference protocol; `flmm reproduce` runs them.
        needs_flmm: Whether only a model that gives masks can fill it.
    """

    name: str
    group: str
    header: str
    sources: tuple[Source, ...]
    protocol: str
    digits: int = 1
    tasks: tuple[str, ...] = ()
    needs_flmm: bool = False


@dataclass(frozen=True)
class Layout:
    """One table: its number in the paper, title, columns, and the arms it has a row for."""

    table: str
    title: str
    columns: tuple[Column, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """Variants of its sources in order of first appearance, the plain one first."""
        names = dict.fromkeys(source.variant for column in self.columns for source in column.sources)
        return tuple(sorted(names, key=lambda name: name != ""))

    @property
    def tasks(self) -> tuple[str, ...]:
        """lmms-eval tasks that fill it, in the order of its columns."""
        return tuple(dict.fromkeys(task for column in self.columns for task in column.tasks))

    @property
    def mask_tasks(self) -> frozenset[str]:
        """Those of its tasks that only a model which answers with masks can do."""
        return frozenset(task for column in self.columns if column.needs_flmm for task in column.tasks)

    @property
    def caption(self) -> str:
        """Number and title."""
        return f"Table {self.table}. {self.title}"

    @property
    def headings(self) -> list[str]:
        """Heading of every column, with its group where the column's own heading would not be clear alone."""
        one_group = len({column.group for column in self.columns}) == 1
        clear = (
            one_group or column.group in ("QA", "RES") or column.header.startswith(column.group)
            for column in self.columns
        )  # fmt: skip
        return [
            column.header if alone else f"{column.group} {column.header}"
            for column, alone in zip(self.columns, clear, strict=True)
        ]

    def column(self, name: str) -> Column:
        """The column of that name."""
        return next(column for column in self.columns if column.name == name)


#: Row of the tasks of the group ``flmm_all_tiny``, whose pictures are made up.
WORLD = "synthetic world"
_KIT_WORLD = {"MME perception": "MME_TINY", "MMBench": "MMBench_TINY", "POPE": "POPE_TINY"}
_WORLD = {"MME perception": "flmm_tiny_mme", "POPE": "flmm_tiny_pope_direct"}


def _stock(
    name: str, header: str, task: str, metrics: tuple[str, ...], kit: str, kit_metrics: tuple[str, ...],
    *, scale: float = 1.0, digits: int = 1, group: str = "QA", kit_fraction: bool = True,
) -> Column:  # fmt: skip
    world = [Source(_WORLD[name], metrics, "tiny_world", WORLD, scale=scale)] if name in _WORLD else []
    if name in _KIT_WORLD:
        kit_world = _KIT_WORLD[name]
        world.append(Source(kit_world, kit_metrics, "tiny_world", WORLD, harness="VLMEvalKit", fraction=kit_fraction))
    return Column(
        name, group, header,
        (
            Source(task, metrics, "lmms_eval", scale=scale),
            *world,
            Source(kit, kit_metrics, "vlmevalkit", harness="VLMEvalKit", fraction=kit_fraction),
        ),
        "", digits, (task,),
    )  # fmt: skip


_MME = (
    _stock(
        "MME perception",
        "MME P",
        "mme",
        ("mme_perception_score",),
        "MME",
        ("perception",),
        digits=0,
        kit_fraction=False,
    ),
    _stock(
        "MME cognition", "MME C", "mme", ("mme_cognition_score",), "MME", ("reasoning",), digits=0, kit_fraction=False
    ),
)
_CHAT = (
    *_MME,
    _stock("MMBench", "MMBench", "mmbench_en_dev", ("gpt_eval_score",), "MMBench_DEV_EN(_V11)?", ("Overall",)),
    _stock("MMVet", "MMVet", "mmvet", ("gpt_eval_score",), "MMVet", ("acc", "Overall"), kit_fraction=False),
    _stock("LLaVA-W", "LLaVA-W", "llava_in_the_wild", ("gpt_eval_llava_all",), "LLaVABench",
           ("Relative Score (main)", "Overall"), kit_fraction=False),
)  # fmt: skip
_MORE_CHAT = (
    _stock("POPE", "POPE", "pope", ("pope_accuracy",), "POPE", ("acc",), scale=100),
    _stock("GQA", "GQA", "gqa", ("exact_match",), "GQA_TestDev_Balanced", ("Overall",), scale=100),
    _stock("VQAv2", "VQAv2", "vqav2_val", ("exact_match",), "VQAv2_VAL", ("Overall",), scale=100),
    _stock("AI2D", "AI2D", "ai2d", ("exact_match",), "AI2D_TEST", ("Overall",), scale=100),
)


def _res(dataset: str, split: str, group: str, header: str) -> Column:
    task = f"flmm_{dataset}_{split}"
    return Column(
        f"{'RefCOCO' + dataset.removeprefix('refcoco')} {split}", group, header,
        (
            Source(re.escape(task), ("cIoU",), "first_expression"),
            Source(re.escape(f"{task}_per_sentence"), ("cIoU",), "every_sentence", "every sentence"),
            *([Source("flmm_tiny_refcoco", ("cIoU",), "tiny_world", WORLD)] if task == "flmm_refcoco_val" else []),
        ),
        "first_expression", 1, (task,), needs_flmm=True,
    )  # fmt: skip


def _png(kind: str, group: str = "PNG") -> Column:
    metric = "AR" if kind == "all" else f"AR_{kind}"
    return Column(
        f"PNG {kind}", group, kind.capitalize(),
        (
            Source("flmm_png", (metric,), "flmm_png"),
            Source("flmm_png_bcv", (metric,), "bcv_png", "the benchmark's protocol"),
            Source("flmm_tiny_png", (metric,), "tiny_world", WORLD),
        ),
        "flmm_png", 1, ("flmm_png",), needs_flmm=True,
    )  # fmt: skip


#: The embedded model is asked in words that it knows; those tasks have names of their own.
_OWN_WORDS = "in the embedded model's words"


def _reasonseg(split: str, kind: str) -> Column:
    name = "val" if split == "val" else f"test {kind}"
    task = "flmm_reasonseg_val" if split == "val" else "flmm_reasonseg_test"
    metrics = ("gIoU",) if kind in ("", "all") else (f"gIoU_{kind}",)
    sources = [Source(task, metrics, "flmm_reasonseg")]
    if split == "test":
        sources.append(Source("flmm_reasonseg_tiny", metrics, "own_words", _OWN_WORDS))
        sources.append(Source("flmm_tiny_reasonseg", metrics, "tiny_world", WORLD))
    return Column(
        f"ReasonSeg {name}", "Val" if split == "val" else "Test", (kind or "all").capitalize(), tuple(sources),
        "flmm_reasonseg", 1, (task,), needs_flmm=True,
    )  # fmt: skip


def _gcg(split: str, header: str, metric: str) -> Column:
    task = f"flmm_gcg_{split}"
    sources = [Source(task, (metric,), "glamm_gcg")]
    if split == "val":
        sources.append(Source("flmm_gcg_tiny", (metric,), "own_words", _OWN_WORDS))
        sources.append(Source("flmm_tiny_gcg", (metric,), "tiny_world", WORLD))
    return Column(
        f"GCG {split} {header}", split.capitalize(), header, tuple(sources), "glamm_gcg", 1, (task,), needs_flmm=True
    )


#: Table 4's rows, and the ending of the tasks that fill them.
_COT = (("no visual CoT", "_direct", ""), ("visual CoT", "", "v1"), ("visual CoT v2", "_v2", "v2"))


def _viscot(name: str, dataset: str) -> Column:
    task = f"flmm_viscot_{dataset}"
    world = {"_direct": "_direct", "": "_v1", "_v2": "_v2"} if dataset == "sroie" else {}
    sources = []
    for arm, ending, _ in _COT:
        sources.append(Source(f"{task}{ending}", ("judged",), "viscot_judged", arm))
        sources.append(Source(f"{task}{ending}", ("anls", "exact"), "viscot_unjudged", f"{arm}, no judge"))
        if ending in world:
            own = f"flmm_tiny_viscot{world[ending]}"
            sources.append(Source(own, ("anls", "exact"), "tiny_world", f"{arm}, {WORLD}"))
    return Column(
        f"VisCoT {name}", "VisCoT", name, tuple(sources), "viscot_judged", 1, (f"{task}_direct", task),
        needs_flmm=True,
    )  # fmt: skip


def _pope(name: str, header: str, metric: str, kit_metric: str) -> Column:
    own = {"_direct": "flmm_pope_direct", "": "flmm_pope_viscot", "_v2": "flmm_pope_viscot_v2"}
    sources = []
    for arm, ending, mode in _COT:
        sources.append(Source(own[ending], (metric,), "lmms_eval", arm, scale=100))
        sources.append(Source("pope", (metric,), "lmms_eval", arm, scale=100, visual_cot=mode))
        world = f"flmm_tiny_pope{ending or '_v1'}"
        sources.append(Source(world, (metric,), "tiny_world", f"{arm}, {WORLD}", scale=100))
    kit = Source("POPE", (kit_metric,), "vlmevalkit", _COT[0][0], harness="VLMEvalKit", fraction=True)
    return Column(name, "POPE", header, (*sources, kit), "", 1, ("flmm_pope_direct", "flmm_pope_viscot"), True)


def _keywords(name: str) -> Column:
    task = "flmm_keywords"
    return Column(
        f"keywords {name}", "", name if name == "F1" else name.capitalize(),
        (
            Source(task, (name,), "png_keywords", "linear keyword selector"),
            Source(task, (f"spacy_{name}",), "png_keywords", "spaCy parser"),
            Source("flmm_tiny_keywords", (name,), "tiny_world", f"linear keyword selector, {WORLD}"),
            Source("flmm_tiny_keywords", (f"spacy_{name}",), "tiny_world", f"spaCy parser, {WORLD}"),
        ),
        "png_keywords", 1, ("flmm_keywords",), needs_flmm=True,
    )  # fmt: skip


_PNG_THREE = (_png("all"), _png("thing"), _png("stuff"))
_DATASETS = (("refcoco", "RefCOCO"), ("refcoco+", "RefCOCO+"), ("refcocog", "RefCOCOg"))

LAYOUTS: Mapping[str, Layout] = {
    layout.table: layout
    for layout in (
        Layout(
            "1", "Question answering, referring expression segmentation (cIoU) and panoptic narrative grounding",
            (*_CHAT, *(_res(data, "val", "RES", name) for data, name in _DATASETS), *_PNG_THREE),
        ),
        Layout(
            "2", "Reasoning segmentation (gIoU)",
            (_reasonseg("val", ""), _reasonseg("test", "short"), _reasonseg("test", "long"), _reasonseg("test", "all")),
        ),
        Layout(
            "3", "Grounded conversation generation",
            tuple(
                _gcg(split, header, metric)
                for split in ("val", "test")
                for header, metric in (("METEOR", "METEOR"), ("mIoU", "mIoU"), ("recall", "mask_recall"))
            ),
        ),
        Layout(
            "4", "Visual chain-of-thought reasoning",
            (
                _viscot("DocVQA", "docvqa"), _viscot("TextCaps", "textcap"), _viscot("TextVQA", "textvqa"),
                _viscot("DUDE", "dude"), _viscot("SROIE", "sroie"), _viscot("InfographicsVQA", "infographicsvqa"),
                _pope("POPE accuracy", "Acc", "pope_accuracy", "acc"),
                _pope("POPE F1", "F1", "pope_f1_score", "Overall"),
            ),
        ),
        Layout("5a", "Prompts of the mask refiner, on PNG", _PNG_THREE),
        Layout("5b", "SAM variants, on PNG", _PNG_THREE),
        Layout("6", "Keyword selection", (_keywords("F1"), _keywords("recall"), _keywords("precision"))),
        Layout("A1", "More question answering", (*_CHAT, *_MORE_CHAT)),
        Layout(
            "A2", "Referring expression segmentation (cIoU), all splits",
            tuple(
                _res(data, split, name, split)
                for data, name in _DATASETS
                for split in (("val", "test") if data == "refcocog" else ("val", "testA", "testB"))
            ),
        ),
        Layout("A3", "Panoptic narrative grounding", (*_PNG_THREE, _png("singular"), _png("plural"))),
    )
}  # fmt: skip

#: What ``--table`` takes; the paper prints 5a and 5b as one table.
TABLE_NAMES = ("1", "2", "3", "4", "5", "6", "A1", "A2", "A3")


def layouts_of(names: Iterable[str]) -> list[Layout]:
    """Layouts by the names that ``--table`` takes, in the paper's order for ``all``.

    Raises:
        UnknownArgument: There is no such table.
    """
    wanted: list[str] = []
    for name in names:
        key = name.strip().upper().removeprefix("TABLE")
        expanded = (
            tuple(LAYOUTS)
            if key == "ALL"
            else ("5a", "5b")
            if key == "5"
            else (key.lower() if key[:1] == "5" else key,)
        )
        for one in expanded:
            if one not in LAYOUTS:
                raise UnknownArgument(
                    f"the paper has no table {name!r} of numbers; known: {', '.join(TABLE_NAMES)}, all"
                )
            wanted.append(one)
    return [LAYOUTS[name] for name in dict.fromkeys(wanted)]
