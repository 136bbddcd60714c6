"""Figures of measured ablations: bars per arm beside what the paper prints, and words chosen against words found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flmm_plugin.errors import DataNotFound
from flmm_plugin.reports.charts import as_png, new_panels

_HERE, _PAPER, _TOOL = "#0072b2", "#d55e00", "#009e73"


@dataclass(frozen=True)
class Bar:
    """One arm.

    Attributes:
        name: Below the bar.
        values: Of every seed, percent; their mean is the bar.
        paper: What the paper prints, percent; None: nothing.
    """

    name: str
    values: tuple[float, ...]
    paper: float | None = None


@dataclass(frozen=True)
class Panel:
    """Arms that are compared.

    Attributes:
        title: Above.
        measure: At the axis.
        bars: In order.
        note: What the paper says, where it prints no number.
    """

    title: str
    measure: str
    bars: tuple[Bar, ...]
    note: str = ""


@dataclass(frozen=True)
class Chosen:
    """Words chosen by one method.

    Attributes:
        name: At the point.
        precision: Percent.
        recall: Percent.
        kind: ``here`` (joined by a line, in order), ``tool`` or ``paper``.
    """

    name: str
    precision: float
    recall: float
    kind: str = "here"


def ablation_bars(panels: Sequence[Panel]) -> bytes:
    """A panel per comparison, as PNG; every seed is a dot, the paper's numbers are diamonds.

    The axis does not begin at zero: differences are what an ablation is about, and they are small.

    Raises:
        DataNotFound: There is nothing to draw.
    """
    if not panels or any(not panel.bars for panel in panels):
        raise DataNotFound("an ablation without arms cannot be drawn; run some first")
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
    """Precision over recall of word selectors, as PNG.

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
