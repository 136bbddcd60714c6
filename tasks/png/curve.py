"""The recall curve as a picture: recall over the IoU threshold, one line per kind of phrase."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flmm_plugin import files
from flmm_plugin.tasks.metrics.png import RecallSums

_NAMES = {"AR": "all", "AR_thing": "things", "AR_stuff": "stuff", "AR_singular": "singulars", "AR_plural": "plurals"}


def draw(sums: Mapping[str, RecallSums], path: Path, title: str = "") -> Path:
    """Write the curves as a PNG; the area under a line is the average recall in its label.

    Args:
        sums: By printed name of the recall; a kind without items has no line.
        path: The file; its folder is made.
        title: Above the picture.

    Returns:
        ``path``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Not through pyplot: nobody's backend is changed and nothing has to be closed.
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, one in sums.items():
        recall = one.average_recall()
        if recall is None:
            continue
        thresholds, recalls = zip(*one.curve(), strict=True)
        label = f"{_NAMES.get(name, name)}: {100 * recall:.1f} ({one.items})"
        axes.plot(thresholds, recalls, label=label, linewidth=2.4 if name == "AR" else 1.4)
    axes.set(xlabel="IoU threshold", ylabel="recall", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(title="average recall, % (phrases)", loc="lower left")
    with files.new_file(path) as part:
        figure.savefig(part, format=path.suffix.removeprefix(".") or "png", dpi=120)
    return path
