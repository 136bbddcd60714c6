"""Draw charts of printed and measured numbers: ranks (Figure 6), recall curves, ablations (Table 5), word selectors.

Every function returns PNG bytes, and names what cannot be drawn. Colours are Okabe and Ito's, and shapes differ too.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.comparison import ComparisonTable, Row
from flmm_plugin.reports.paper_numbers import LMM_NAMES, numbers_of
from flmm_plugin.reports.sample_files import SampleView

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
#: Columns of Table 1 whose ranks are averaged; MME's two numbers are summed first, as its total score.
CHAT: tuple[tuple[str, ...], ...] = (("MME perception", "MME cognition"), ("MMBench",), ("MMVet",), ("LLaVA-W",))
GROUND: tuple[tuple[str, ...], ...] = tuple(
    (name,) for name in ("RefCOCO val", "RefCOCO+ val", "RefCOCOg val", "PNG all", "PNG thing", "PNG stuff")
)


@dataclass(frozen=True)
class RankPoint:
    """One model: its average rank among all in chat and in grounding, 1 being the best."""

    name: str
    chat: float
    ground: float


@dataclass(frozen=True)
class Fit:
    """A least-squares line ``ground = slope * chat + offset``, and Pearson's r of the points."""

    slope: float
    offset: float
    r: float


def published_ranks() -> list[RankPoint]:
    """Return the ranks printed in Figure 6. No rule for ties gives them from Table 1's numbers; see `ranks_of`."""
    found: dict[str, dict[str, float]] = {}
    for one in numbers_of("F6"):
        found.setdefault(LMM_NAMES[one.backbone], {})[one.column] = one.number
    return [RankPoint(name, ranks["chat rank"], ranks["ground rank"]) for name, ranks in found.items()]


def ranks_of(table: ComparisonTable) -> tuple[list[RankPoint], dict[str, list[str]]]:
    """Compute average ranks from Table 1: of F-LMM's printed rows and measured ones, together.

    Equal numbers share the mean of their places.

    Returns:
        Points, and for every measured F-LMM row that is left out the columns it lacks or may not be compared in.
    """
    rows = [row for row in table.rows if row.kind == "flmm" or (row.kind == "published" and row.backbone)]
    complete: list[tuple[str, dict[str, float]]] = []
    lacking: dict[str, list[str]] = {}
    for row in rows:
        values = {cell.column.name: cell.value for cell in row.cells if cell.value is not None and cell.comparable}
        lacks = [name for group in (*CHAT, *GROUND) for name in group if name not in values]
        if lacks:
            lacking[row.name] = lacks
        else:
            complete.append((_rank_name(row), {name: float(value) for name, value in values.items()}))
    chat, ground = (_average_ranks([values for _, values in complete], groups) for groups in (CHAT, GROUND))
    points = [RankPoint(name, chat[at], ground[at]) for at, (name, _) in enumerate(complete)]
    return points, lacking


def _rank_name(row: Row) -> str:
    return f"{row.name} (measured)" if row.kind == "flmm" else LMM_NAMES[row.backbone]


def _average_ranks(models: Sequence[Mapping[str, float]], groups: Sequence[Sequence[str]]) -> list[float]:
    totals = pd.DataFrame([[sum(model[name] for name in group) for group in groups] for model in models])
    averages: list[float] = totals.rank(ascending=False).mean(axis=1).tolist()
    return averages


def fit(points: Sequence[RankPoint]) -> Fit:
    """Return the least-squares line through the points.

    Raises:
        DataNotFound: Fewer than two different chat ranks.
    """
    chat, ground = np.array([p.chat for p in points]), np.array([p.ground for p in points])
    if len(set(chat.tolist())) < 2:
        raise DataNotFound(f"a line needs two models of different rank, there are {len(points)}; leave the paper's in")
    slope, offset = np.polyfit(chat, ground, 1)
    r = np.corrcoef(chat, ground)[0, 1] if len(set(ground.tolist())) > 1 else 0.0
    return Fit(float(slope), float(offset), float(r))


def rank_chart(series: Mapping[str, Sequence[RankPoint]]) -> bytes:
    """Draw Figure 6: chat rank against ground rank, with a dashed linear fit per series."""
    figure, (axes,) = new_panels(1, 7.2, 5.4)
    for at, (name, points) in enumerate(series.items()):
        colour = _COLOURS[at % len(_COLOURS)]
        line = fit(points)
        ends = np.array([min(p.chat for p in points), max(p.chat for p in points)])
        label = f"{name}: slope {line.slope:.2f}, r {line.r:.2f}"
        axes.plot(ends, line.slope * ends + line.offset, linestyle="--", color=colour, linewidth=1.2)
        axes.scatter(
            [p.chat for p in points], [p.ground for p in points], s=36, color=colour, label=label,
            marker="os^D"[at % 4], zorder=3,
        )  # fmt: skip
        for point in points:
            if at == 0 or point.name.endswith("(measured)"):
                axes.annotate(point.name, (point.chat, point.ground), (4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="average chat rank (1 is best)", ylabel="average ground rank (1 is best)")
    axes.margins(x=0.16, y=0.08)
    axes.legend(loc="upper left", fontsize=8)
    return as_png(figure)


def recall_chart(samples: Iterable[SampleView]) -> bytes:
    """Draw recall curves: the share of phrases whose IoU is at least a threshold, one curve per model and task.

    Raises:
        DataNotFound: No sample has an IoU.
    """
    curves: dict[str, list[float]] = {}
    for sample in samples:
        known = [phrase.iou for phrase in sample.phrases if phrase.iou is not None]
        if known:
            curves.setdefault(f"{sample.model}, {sample.task}", []).extend(known)
    if not curves:
        raise DataNotFound("no sample has an IoU: run mask tasks with --log_samples and give their folder")
    figure, (axes,) = new_panels(1, 7.2, 5.0)
    for at, (name, ious) in enumerate(sorted(curves.items())):
        thresholds, recall = recall_curve(ious)
        label = f"{name}: mean IoU {np.mean(ious):.3f}, n {len(ious)}"
        style = ("-", "--", ":", "-.")[at // len(_COLOURS) % 4]
        axes.step(thresholds, recall, where="post", color=_COLOURS[at % len(_COLOURS)], linestyle=style, label=label)
    axes.set(xlabel="IoU threshold", ylabel="share of phrases with at least that IoU", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(loc="lower left", fontsize=8)
    return as_png(figure)


def recall_curve(ious: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return thresholds 0, 0.01, ... 1 and the share of IoUs at or above each.

    >>> recall_curve([0.5, 1.0])[1][50:52]
    [1.0, 0.5]
    """
    ordered = np.sort(np.asarray(ious, dtype=np.float64))
    thresholds = np.arange(101) / 100
    # An IoU that equals a threshold but for rounding counts as reaching it.
    below = np.searchsorted(ordered, thresholds - 1e-12, side="left")
    shares: npt.NDArray[np.float64] = 1 - below / len(ordered)
    return thresholds.tolist(), shares.tolist()


def ablation_chart(tables: Sequence[ComparisonTable]) -> bytes:
    """Draw bars of an ablation's variants, the paper's beside the measured ones; one panel per table.

    Raises:
        DataNotFound: A table has no row.
    """
    if any(not table.rows for table in tables):
        raise DataNotFound("an ablation without rows cannot be drawn: leave the paper's rows in, or give runs of it")
    figure, panels = new_panels(len(tables))
    for axes, table in zip(panels, tables, strict=True):
        rows = [row for row in table.rows if row.kind in ("published", "flmm")]
        variants = list(dict.fromkeys(row.variant or row.label for row in rows))
        owners: dict[str, list[Row]] = {}
        for row in rows:
            owners.setdefault("published" if row.kind == "published" else row.label, []).append(row)
        width = 0.8 / max(1, len(owners))
        for at, (owner, of_owner) in enumerate(owners.items()):
            colour = _COLOURS[at % len(_COLOURS)]
            for row in of_owner:
                cell = row.cells[0]
                if cell.value is not None:
                    place = variants.index(row.variant or row.label) + (at - (len(owners) - 1) / 2) * width
                    bar = axes.bar(place, cell.value, width * 0.92, color=colour)
                    axes.bar_label(bar, [f"{cell.text}{'*' if cell.marks else ''}"], fontsize=8)
            axes.bar(0, 0, color=colour, label=owner)
        axes.set_xticks(range(len(variants)), variants, rotation=20, ha="right", fontsize=8)
        axes.set_title(f"{table.layout.table}. {table.layout.title}", fontsize=9)
        axes.set_ylabel(table.layout.columns[0].name)
        axes.legend(fontsize=8, loc="lower right")
    figure.supxlabel("* not measured as the published numbers were; flmm report --table 5 says how", fontsize=7)
    return as_png(figure)


_HERE, _PAPER, _TOOL = "#0072b2", "#d55e00", "#009e73"


@dataclass(frozen=True)
class Bar:
    """One run of an ablation: its name, its values by seed (percent), and what the paper prints (percent, or None)."""

    name: str
    values: tuple[float, ...]
    paper: float | None = None


@dataclass(frozen=True)
class Panel:
    """Runs that are compared; ``measure`` names the axis, ``note`` is what the paper says where it prints no number."""

    title: str
    measure: str
    bars: tuple[Bar, ...]
    note: str = ""


@dataclass(frozen=True)
class Chosen:
    """Precision and recall, percent, of the words that one method chose.

    Attributes:
        kind: ``here`` (joined by a line, in order), ``tool`` or ``paper``.
    """

    name: str
    precision: float
    recall: float
    kind: str = "here"


def ablation_bars(panels: Sequence[Panel]) -> bytes:
    """Draw one panel per comparison: bars are means, every seed is a dot, the paper's numbers are diamonds.

    The axis does not begin at zero: differences are what an ablation is about, and they are small.

    Raises:
        DataNotFound: There is nothing to draw.
    """
    if not panels or any(not panel.bars for panel in panels):
        raise DataNotFound("an ablation without runs cannot be drawn; run some first")
    figure, places = new_panels(len(panels), 3.6, 3.8)
    for axes, panel in zip(places, panels, strict=True):
        everything: list[float] = []
        for at, bar in enumerate(panel.bars):
            mean = sum(bar.values) / len(bar.values)
            drawn = axes.bar(at, mean, 0.62, color=_HERE, alpha=0.85, label="here" if at == 0 else None)
            axes.bar_label(drawn, [f"{mean:.1f}"], fontsize=8, padding=2)
            if len(bar.values) > 1:
                axes.plot([at] * len(bar.values), bar.values, "o", color="black", markersize=3)
            if bar.paper is not None:
                known = any(one.paper is not None for one in panel.bars[:at])
                axes.plot(at, bar.paper, "D", color=_PAPER, markersize=6, label=None if known else "paper")
            everything += [*bar.values, *([] if bar.paper is None else [bar.paper])]
        span = max(max(everything) - min(everything), 2.0)
        axes.set_ylim(max(0.0, min(everything) - 0.6 * span), max(everything) + 0.35 * span)
        axes.set_xticks(range(len(panel.bars)), [bar.name for bar in panel.bars], rotation=20, ha="right", fontsize=8)
        axes.set_title(panel.title + (f"\npaper: {panel.note}" if panel.note else ""), fontsize=9)
        axes.set_ylabel(panel.measure, fontsize=8)
        if any(bar.paper is not None for bar in panel.bars):
            axes.legend(fontsize=8)
    return as_png(figure)


def chosen_words(points: Sequence[Chosen]) -> bytes:
    """Draw precision over recall of word selectors.

    Raises:
        DataNotFound: There is nothing to draw.
    """
    if not points:
        raise DataNotFound("no selector was measured; run one first")
    figure, (axes,) = new_panels(1)
    styles = {"here": ("o-", _HERE), "tool": ("s", _TOOL), "paper": ("D", _PAPER)}
    for kind, (style, colour) in styles.items():
        own = [point for point in points if point.kind == kind]
        if own:
            axes.plot([point.recall for point in own], [point.precision for point in own], style, color=colour)
        for point in own:
            axes.annotate(
                point.name, (point.recall, point.precision), textcoords="offset points", xytext=(-6, -4), ha="right",
                fontsize=8,
            )  # fmt: skip
    axes.set(xlabel="recall, % of words", ylabel="precision, % of words", xlim=(0, 103), ylim=(0, 103))
    return as_png(figure)


def new_panels(count: int, width: float = 5.2, height: float = 4.4) -> tuple[Any, list[Axes]]:
    """Return a figure and its panels, outside pyplot's global state: several may be drawn, and none is shown."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, squeeze=False)[0].tolist()
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, panels


def as_png(figure: Any) -> bytes:
    """Return the figure as a PNG file."""
    buffer = io.BytesIO()
    # No date and no version inside: the same numbers give the same bytes.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
