"""``flmm ablate``: the paper's ablations on any backbone, each with its table and its figure."""

from __future__ import annotations

import argparse
import csv
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import files
from flmm_plugin.cli.model_options import add_no_fetch
from flmm_plugin.cli.output import markdown_table, note
from flmm_plugin.cli.train import needs_of, sam_needs
from flmm_plugin.errors import DataNotFound, ToolNotFound
from flmm_plugin.needs import Need, provide
from flmm_plugin.redaction import public

if TYPE_CHECKING:
    from flmm_plugin.training.ablations import Measured, Part, Study
    from flmm_plugin.training.recipe import TrainRecipe

_DESCRIPTION = """\
Train one variant after the other on the same data, measure each on held-out samples, and print the study's table:

  decoder   Figure 5: attention of which layers, mean or max over a phrase's tokens, normalised or not, input size
  refiner   Table 5: the prompts given to SAM (mask, box, text), which SAM
  selector  Table 6: the keyword selector at several thresholds, beside spaCy's noun chunks where spaCy is installed
  maps      not in the paper: attention weights, or each times the norm of the token's value

The LMM is read once for all variants. Killed, the same line goes on: finished variants are read, not made again.
"""
_EPILOG = """\
examples:
  flmm ablate decoder --out runs/ablations                      on the embedded model and its scenes, offline
  flmm ablate decoder --parts layers merge --seeds 3            two of the four parts, every variant three times
  flmm ablate refiner --config flmm_deepseekvl                  as in the paper: DeepSeekVL-1.3B, PNG, three SAMs

Writes OUT/STUDY.csv and OUT/STUDY.png; runs and their heads are in folders beside them.
"""
#: Heading -> key of `Measured.scores`. The paper's average recall on PNG is the mean IoU of all phrases: the area under
#: the share of phrases above every threshold.
_SCORES = {"average recall (mean IoU), %": "miou", "cIoU, %": "ciou", "recall at 0.5, %": "recall"}
_COST = "decoder, GFLOP per phrase"
_PAPER = "paper (DeepSeekVL-1.3B, PNG average recall)"


def add_subcommand(commands: Any) -> None:
    """Add ``ablate`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "ablate",
        help="the paper's ablations (decoder, refiner, selector), and what maps hold",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("study", choices=("decoder", "refiner", "selector", "maps"), help="what is varied")
    option("changes", metavar="key=value", nargs="*", help="keys of the recipe to change, for all variants")
    option("--config", default="flmm_tiny_ablation", help="recipe, by name or as a YAML file (default: %(default)s)")
    option("--out", type=Path, default=Path("runs/ablations"), help="default: %(default)s")
    option("--parts", nargs="+", default=[], metavar="PART", help="only these (see --list)")
    option("--skip", nargs="+", default=[], metavar="VARIANT", help="without these variants (see --list)")
    option("--seeds", type=int, default=1, metavar="N", help="train every variant N times (default: 1)")
    option("--list", action="store_true", help="the study's parts and variants, and stop")
    add_no_fetch(parser)
    option("--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(run=_ablate, stopped=_stopped)


def _stopped(args: argparse.Namespace) -> str:
    """Say what a study that somebody stops has saved."""
    return f"finished variants, and checkpoints of the one at hand, are in {args.out}: the same line goes on from there"


def _ablate(args: argparse.Namespace) -> int:
    from flmm_plugin.training.ablations import STUDIES, chosen, run_study, variant_recipe, with_sams

    base = variant_recipe(args.config, args.changes, 0, args.out)
    study = chosen(with_sams(STUDIES[args.study], base), args.parts, args.skip)
    if args.list:
        print("\n".join(f"{part.key:<10} {', '.join(one.name for one in part.variants)}" for part in study.parts))
        return 0
    files.make_folder(args.out)
    changed = [[*study.changes, *one.changes] for part in study.parts for one in part.variants]
    recipes = [variant_recipe(args.config, [*args.changes, *own], 0, args.out) for own in changed]
    find = partial(_needs_of, base, recipes, Path(args.config).stem)
    provide(find(), fetch=not args.no_fetch, again=find)
    found: list[Measured] = []
    rows: list[dict[str, str]] = []
    for one in run_study(
        study, args.config, args.changes, args.out, seeds=range(max(1, args.seeds)), say=note,
        progress=not args.quiet,
    ):  # fmt: skip
        found.append(one)
        note(f"  {', '.join(f'{name} {_percent(one.scores.get(key))}' for name, key in _SCORES.items())}")
        if study.key != "selector":
            rows = _write(args, variant_rows(study, found), variant_figure(study, found), found)
    if study.key == "selector":
        words = selector_rows(args, found)
        rows = _write(args, words, selector_figure(words), found)
    headings = list(rows[0])
    print(markdown_table(headings, [[row.get(name, "") for name in headings] for row in rows]))
    note(f"wrote {args.out / study.key}.csv and .png")
    return 0


def _needs_of(base: TrainRecipe, variants: Sequence[TrainRecipe], name: str) -> list[Need]:
    """Return what a study needs: model and data of its recipe, and the SAMs of its variants."""
    needs = [*needs_of(base, name), *(need for one in variants for need in sam_needs(one))]
    return list({(need.kind, need.what): need for need in needs}.values())


def _write(
    args: argparse.Namespace, rows: list[dict[str, str]], picture: bytes, found: Sequence[Measured]
) -> list[dict[str, str]]:
    """Write table and figure of what is known by now: a command that is stopped leaves those of its finished runs."""
    files.write(args.out / f"{args.study}.csv", as_csv(rows, provenance(args, found)))
    files.write(args.out / f"{args.study}.png", picture)
    return rows


def variant_rows(study: Study, found: Sequence[Measured]) -> list[dict[str, str]]:
    """Return a row per variant: means over seeds, half of the range behind them."""
    rows: list[dict[str, str]] = []
    for part, name, runs in _by_variant(study, found):
        row = {"in the paper": part.table, "varied": part.title, "variant": name}
        row |= {heading: _mean([one.scores.get(key) for one in runs]) for heading, key in _SCORES.items()}
        if study.key == "decoder":
            row[_COST] = f"{runs[0].decoder_gflop:.2f}"
        printed = _published(part.table, name)
        row[_PAPER] = part.said if printed is None else f"{printed:.1f}"
        rows.append(row)
    return rows


def variant_figure(study: Study, found: Sequence[Measured]) -> bytes:
    """Draw the bars of every part."""
    from flmm_plugin.reports.charts import Bar, Panel, ablation_bars

    bars: dict[str, list[Bar]] = {}
    for part, name, runs in _by_variant(study, found):
        numbers = tuple(100 * miou for one in runs if (miou := one.scores.get("miou")) is not None)
        if numbers:
            bars.setdefault(part.key, []).append(Bar(name, numbers, _published(part.table, name)))
    panels = []
    for part in study.parts:
        if part.key in bars:
            remark = part.said if all(bar.paper is None for bar in bars[part.key]) else ""
            panels.append(Panel(part.title, "average recall (mean IoU), %", tuple(bars[part.key]), remark))
    return ablation_bars(panels)


def _by_variant(study: Study, found: Sequence[Measured]) -> Iterator[tuple[Part, str, list[Measured]]]:
    """Yield the variants that were measured, each with its part, its name and a run per seed."""
    for part in study.parts:
        for variant in part.variants:
            runs = [one for one in found if (one.part, one.variant) == (part.key, variant.name)]
            if runs:
                yield part, variant.name, runs


def selector_rows(args: argparse.Namespace, found: Sequence[Measured]) -> list[dict[str, str]]:
    """Return a row per threshold and tool; counts of words are summed over texts and seeds, then divided."""
    from flmm_plugin.tasks.keywords.noun_chunks import load_noun_chunks
    from flmm_plugin.tasks.metrics.keywords import PickedCounts, total, word_counts
    from flmm_plugin.training.ablations import THRESHOLDS, select, variant_recipe

    texts = [
        one
        for run in found
        for one in select(variant_recipe(args.config, args.changes, run.seed, args.out), run.folder, THRESHOLDS)
    ]
    if not texts:
        raise DataNotFound("no held-out text has annotated words; validation.parts must name PNG narratives")

    def row(method: str, counts: PickedCounts) -> dict[str, str]:
        return {
            "method": method,
            "F1, %": _percent(counts.f1),
            "recall, %": _percent(counts.recall),
            "precision, %": _percent(counts.precision),
            "of": "words, here",
        }

    rows = [
        row(f"keyword selector, threshold {limit}", total(word_counts(t.text, t.picked[at], t.wanted) for t in texts))
        for at, limit in enumerate(THRESHOLDS)
    ]
    try:
        chunks = load_noun_chunks()
        rows.append(row(f"noun chunks ({chunks.name})", total(
            word_counts(one.text, chunks.spans(one.text), one.wanted) for one in texts
        )))  # fmt: skip
    except ToolNotFound as exc:
        note(f"left out: {exc}")
    return [*rows, *_published_selectors()]


def selector_figure(rows: Sequence[Mapping[str, str]]) -> bytes:
    """Draw precision over recall."""
    from flmm_plugin.reports.charts import Chosen, chosen_words

    points = []
    for row in rows:
        if row["recall, %"] and row["precision, %"]:
            kind = "here" if "threshold" in row["method"] else "tool"
            if "paper" in row["of"]:
                kind = "paper"
            name = row["method"].rsplit("threshold ", 1)[-1] + (" (paper)" if kind == "paper" else "")
            points.append(Chosen(name, float(row["precision, %"]), float(row["recall, %"]), kind))
    return chosen_words(points)


def provenance(args: argparse.Namespace, found: Sequence[Measured]) -> dict[str, str]:
    """Return command, data, frozen model and versions, as a run recorded them."""
    record = files.read_json(found[0].folder / "run.json", DataNotFound)
    words = ["flmm", "ablate", args.study, *public(args.changes), "--config", Path(args.config).name]
    words += ["--parts", *args.parts] if args.parts else []
    words += ["--skip", *(repr(name) if " " in name else name for name in args.skip)] if args.skip else []
    words += ["--seeds", str(args.seeds)] if args.seeds != 1 else []
    backbone, data = record["backbone"], record["data"]
    return {
        "command": " ".join(words),
        "backbone": f"{Path(backbone['name']).name}, {backbone['layers']} layers x {backbone['heads']} heads",
        "frozen weights": ", ".join(record["frozen"]),
        "learnt from": f"{data['samples']} pictures, {data['phrases']} phrases",
        "measured on": f"{found[0].scores.get('phrases')} held-out phrases",
        "steps": f"{found[0].steps} of {record['recipe']['batch_size']} pictures",
        "seeds": ", ".join(sorted({str(one.seed) for one in found})),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "machine": record["machine"],
    }


def as_csv(rows: Sequence[Mapping[str, str]], facts: Mapping[str, str]) -> str:
    """Write rows under their headings, below ``#`` lines with their provenance."""
    out = io.StringIO()
    for name, value in facts.items():
        out.write(f"# {name}: {value}\n")
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _published(table: str, variant: str) -> float | None:
    from flmm_plugin.reports.paper_numbers import numbers_of

    numbers = [one.number for one in numbers_of(table) if one.variant == variant and one.column == "PNG all"]
    return numbers[0] if numbers else None


def _published_selectors() -> list[dict[str, str]]:
    from flmm_plugin.reports.paper_numbers import numbers_of

    rows: dict[str, dict[str, str]] = {}
    for one in numbers_of("6"):
        row = rows.setdefault(one.row, {"method": one.row})
        row[f"{one.column.removeprefix('keywords ')}, %"] = one.value
    return [{**row, "of": "not said, PNG (paper)"} for row in rows.values()]


def _mean(values: Sequence[float | None]) -> str:
    """Write the mean in per cent, with half of the range over seeds where there are several."""
    numbers = [100 * value for value in values if value is not None]
    if not numbers:
        return ""
    spread = f" ± {(max(numbers) - min(numbers)) / 2:.1f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.1f}{spread}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
