"""Run a Visual-CoT set in lmms-eval: answers, boxes, and a judge if there is one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from loguru import logger

from flmm_plugin.tasks.file_task import FileTask
from flmm_plugin.tasks.metrics.totals import total
from flmm_plugin.tasks.sample_log import DocumentScores, reply_of
from flmm_plugin.tasks.viscot import scoring
from flmm_plugin.tasks.viscot.judge import PROMPT_VERSION, Judge, judge_from_environment


class VisCot(FileTask):
    """Questions of one set, answered with or without a second look.

    Config: ``dataset_kwargs`` has ``name`` (a set), optionally ``root`` and ``boxes`` (false where none is asked for);
    what is asked of an ``flmm_*`` model is in ``generation_kwargs``.
    """

    def facts(self) -> dict[str, Any]:
        """Return who judges; the judge is looked for now."""
        self._judge: Judge | None = judge_from_environment()
        return {
            "judge": self._judge.model if self._judge is not None else "none",
            "judge_prompt": PROMPT_VERSION,
            "judge_date": datetime.now(UTC).date().isoformat(),
        }

    def process_results(self, doc: Mapping[str, Any], results: list[Any], full_docs: Any = None) -> dict[str, Any]:
        """Return the scores of one document, the judge's among them. lmms-eval calls this from several threads."""
        sample = DocumentScores(scoring.score_reply(doc, results))
        if self._judge is None:
            return sample
        answer = scoring.read_reply(reply_of(results)).text.strip()
        if not answer:  # nothing that anybody could judge
            sample["judge_items"] = {"count": 1}
            sample["judged"] = {"score": 0.0, "unreadable": False}
            return sample
        verdict = self._judge.verdict(doc["question"], doc["answer"], answer)
        sample["judge_items"] = {"count": int(verdict is not None)}
        if verdict is not None:
            points = 0.0 if verdict.score is None else verdict.score
            sample["judged"] = {**vars(verdict), "score": points, "unreadable": verdict.score is None}
        return sample

    def aggregation(self) -> dict[str, Any]:
        """Return the template's aggregations; that of ``judge_items`` also says how many verdicts are missing."""
        return {**super().aggregation(), "judge_items": self._judge_items}

    def _judge_items(self, samples: list[scoring.Sample]) -> int:
        judged = total(samples)
        if judged < len(samples):
            logger.warning(
                f"{self.config.task}: the judge gave {judged} of {len(samples)} verdicts; `judged` is the mean of "
                "those. Run again to ask for the others"
            )
        return judged
