"""Run panoptic narrative grounding in lmms-eval, with the recall curve as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loguru import logger

from flmm_plugin.tasks.file_task import FileTask
from flmm_plugin.tasks.png import scoring


class PanopticNarrativeGrounding(FileTask):
    """Masks for the phrases of each narrative, which is fed as the model's answer."""

    def aggregation(self) -> dict[str, Any]:
        """Return the template's aggregations, with the one that draws."""
        listed = super().aggregation()
        return {**listed, "recall_curve": self._recall_curve} if "recall_curve" in listed else listed

    def _recall_curve(self, samples: list[scoring.Sample], args: Any = None) -> str:
        """Draw the picture; its path relative to ``--output_path``; "" without one."""
        folder = getattr(args, "output_path", None)
        if not folder:
            logger.info(f"{self.config.task}: give --output_path to get the recall curve as a picture")
            return ""
        task = str(self.config.task)
        path = scoring.draw_curves(scoring.curves(samples), Path(folder) / f"{task}_recall_curve.png", task)
        logger.info(f"{task}: recall curve in {path}")
        return path.name
