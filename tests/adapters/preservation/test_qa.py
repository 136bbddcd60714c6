"""``flmm preserve --tasks flmm_qa``: all eight stock tasks of lmms-eval through both runs, judged ones with a judge.

The judge is one that never says the same twice; the data are two drawn questions per benchmark, in its own format.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.adapters.answering import identity
from flmm_plugin.adapters.preservation.proof import Plan, prove
from flmm_plugin.adapters.preservation.record import RunSpec
from flmm_plugin.adapters.preservation.run import run_here
from flmm_plugin.adapters.preservation.verdict import RunRecord
from tests.adapters.lmms_eval.qa_data import DOCUMENTS, write_qa

pytest.importorskip("torch")

#: Folders of lmms-eval's stock tasks that the group names.
FOLDERS = ("mme", "mmbench", "mmvet", "llava-in-the-wild", "pope", "gqa", "vqav2", "ai2d")
METRICS = {
    "mme": "mme_perception_score,none", "mmbench_en_dev": "gpt_eval_score,none", "mmvet": "gpt_eval_score,none",
    "llava_in_the_wild": "gpt_eval_llava_all,none", "pope": "pope_accuracy,none", "gqa": "exact_match,none",
    "vqav2_val": "exact_match,none", "ai2d": "exact_match,flexible-extract",
}  # fmt: skip


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the eight, short answers, and one process where GQA's pictures are joined by eight."""
    import datasets
    import transformers

    write_qa(tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    cache = str(tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: cache)
    join = datasets.Dataset.map
    monkeypatch.setattr(datasets.Dataset, "map", lambda self, *a, **k: join(self, *a, **{**k, "num_proc": None}))
    say = transformers.GenerationMixin.generate

    def brief(self: Any, *args: Any, **options: Any) -> Any:
        # Random weights have no end, and LLaVA-Bench allows 4096 tokens.
        return say(self, *args, **{**options, "max_new_tokens": min(4, options["max_new_tokens"])})

    monkeypatch.setattr(transformers.GenerationMixin, "generate", brief)
    monkeypatch.setattr(identity, "code_digest", lambda *_: "this code")
    return tmp_path / "work"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the judge was asked; its answers are in each task's form, and never twice the same."""
    from lmms_eval import llm_judge

    questions: list[str] = []
    moods = itertools.count(1)

    class Moody(llm_judge.ServerInterface):
        def is_available(self) -> bool:
            return True

        def evaluate(self, request: Any) -> Any:
            asked = request.messages[0]["content"]
            questions.append(asked)
            mood = next(moods)
            several = "several options" in asked
            said = "AB"[mood % 2] if several else f"{mood / 100:g}" if "Correctness" in asked else f"9 {mood / 10:g}"
            return llm_judge.Response(content=said, model_used="moody-1")

    monkeypatch.setitem(llm_judge.ProviderFactory._provider_classes, "moody", Moody)
    monkeypatch.setenv("API_TYPE", "moody")
    return questions


def launch(spec: RunSpec, folder: Path) -> RunRecord:
    import lmms_eval.tasks

    import flmm_plugin.tasks

    stock = Path(lmms_eval.tasks.__file__).parent
    paths = [str(stock / name) for name in FOLDERS] + [str(Path(flmm_plugin.tasks.__file__).parent / "qa")]
    index = lmms_eval.tasks.TaskManager(include_path=paths, include_defaults=False)
    return run_here(spec, folder, task_manager=index)


def test_all_eight_are_unchanged_and_the_second_run_gets_the_judge_answers_of_the_first(
    work: Path, asked: list[str], llava_folders: dict[str, Path], tmp_path: Path
) -> None:
    arguments = {"pretrained": str(llava_folders["mha"])}
    plan = Plan(model="flmm_llava", tasks=("flmm_qa",), out=tmp_path / "out", model_args=arguments, ground_every=6)
    verdict = prove(plan, launch)
    stock, ours = verdict.runs
    assert (verdict.status, verdict.mode, stock.adapter) == ("unchanged", "exact", "llava_hf")
    answered = [answer.task for answer in ours.answers.values()]
    assert {task: answered.count(task) for task in DOCUMENTS} == DOCUMENTS
    for task, metric in METRICS.items():
        assert isinstance(ours.metrics[task][metric], int | float), task
    # Five free answers, and MMBench's where no option is named: each judged once, for both runs.
    assert stock.judge["asked"] == len(asked) >= 5
    assert ours.judge == {"asked": len(asked), "reused": len(asked), "failed": 0}
    assert ours.metrics["mmvet"]["gpt_eval_score,none"] > 0
    assert ours.metrics["llava_in_the_wild"]["gpt_eval_llava_all,none"] > 0
    assert any(re.fullmatch(r"(\d+) of \1 judge answers were reused", note) for note in verdict.notes)
