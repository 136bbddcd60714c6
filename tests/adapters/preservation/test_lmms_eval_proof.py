"""`flmm preserve` through lmms-eval's own evaluator: a tiny random LLaVA, its stock adapter, and planted faults.

Random weights answer nothing right: what must hold is that equal is called equal, and that every fault is caught.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.adapters.answering import identity
from flmm_plugin.adapters.lmms_eval import preflight
from flmm_plugin.adapters.lmms_eval.preflight import NotReady
from flmm_plugin.adapters.preservation import plain_lmms_eval
from flmm_plugin.adapters.preservation.faults import FAULTS
from flmm_plugin.adapters.preservation.lmms_eval import WatchedModel, evaluate, make_model, marks_of
from flmm_plugin.adapters.preservation.proof import Plan, RunFailed, in_a_process, other_settings, prove
from flmm_plugin.adapters.preservation.record import RunSpec, StockUnusable, read_answers
from flmm_plugin.adapters.preservation.run import run_here
from flmm_plugin.adapters.preservation.stock import shared, stock_arguments
from flmm_plugin.adapters.preservation.verdict import RunRecord, Verdict
from flmm_plugin.adapters.preservation.watch import Recorder
from flmm_plugin.cli.preserve import FAULTS as NAMED
from flmm_plugin.errors import UnknownArgument

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def heads_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random heads without a refiner that fit the tiny LLaVA."""
    from flmm_plugin.heads.checkpoint import save_heads
    from flmm_plugin.heads.grounding_heads import GroundingHeads
    from flmm_plugin.heads.manifest import HeadsManifest

    torch.manual_seed(0)
    small = {"base_channels": 8, "upsample_to": 16}
    manifest = HeadsManifest(backbone="tiny", layers=3, heads=4, hidden_size=64, decoder=small, sam=None)
    path = tmp_path_factory.mktemp("heads") / "heads.safetensors"
    save_heads(path, GroundingHeads.build(manifest))
    return path


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory in which the stock ``mme`` task finds four questions about pictures of two shapes."""
    import datasets

    rng = np.random.default_rng(0)
    rows = [
        {
            "question_id": f"existence/{number // 2}.png",
            "image": Image.fromarray(rng.integers(0, 256, (60, 90 - 40 * (number // 2), 3), dtype=np.uint8)),
            "question": f"Is there a {thing} in the image? Please answer yes or no.",
            "answer": "Yes" if number % 2 else "No",
            "category": "existence",
        }
        for number, thing in enumerate(("dog", "cat", "man on a horse", "sofa"))
    ]
    names = ("question_id", "question", "answer", "category")
    features = datasets.Features({name: datasets.Value("string") for name in names} | {"image": datasets.Image()})
    folder = tmp_path_factory.mktemp("work")
    target = folder / "lmms-lab-encoder/MME/data/test-00000-of-00001.parquet"
    target.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(target)
    cache = str(folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: cache)
        yield folder


@pytest.fixture(scope="module", autouse=True)
def same_code() -> Iterator[None]:
    """A run is kept under a hash of this package's code, which an editor may save while the tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "code_digest", lambda *_: "this code")
        yield


@functools.cache
def index() -> Any:
    """MME alone: indexing all of lmms-eval reads a thousand files."""
    import lmms_eval.tasks

    return lmms_eval.tasks.TaskManager(
        include_path=str(Path(lmms_eval.tasks.__file__).parent / "mme"), include_defaults=False
    )


FOLDERS: dict[tuple[str, str, int, float | None], Path] = {}


def launch(spec: RunSpec, folder: Path) -> RunRecord:
    FOLDERS[spec.role, spec.plant, spec.batch_size, spec.limit] = folder
    return run_here(spec, folder, task_manager=index())


@pytest.fixture(scope="module")
def plan(
    work: Path, llava_folders: dict[str, Path], heads_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Plan:
    return Plan(
        model="flmm_llava", tasks=("mme",), out=tmp_path_factory.mktemp("out"),
        model_args={"pretrained": str(llava_folders["mha"]), "heads": str(heads_file)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def clean(plan: Plan) -> Verdict:
    return prove(plan, launch)


def differing(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.differing}


def test_chat_beside_grounding_is_the_stock_adapter_s(clean: Verdict) -> None:
    assert (clean.status, clean.mode, clean.exit_status) == ("unchanged", "exact", 0)
    stock, ours = clean.runs
    assert stock.adapter == "llava_hf"
    assert ours.grounded == {"asked": 4, "failed": 0}
    compared = {check.name: check.compared for check in clean.checks}
    assert compared.pop("weights") == len(stock.weights) > 50
    assert compared == {
        "questions": 4, "prompts": 4, "pictures": 4, "generated ids": 4, "texts": 4, "log-likelihoods": 0,
        "metrics": 1, "logits": 1,
    }  # fmt: skip
    assert len({answer.ids for answer in ours.answers.values()}) > 1, "a model that says one thing equals anything"
    assert "4 grounding requests ran between the questions" in clean.notes


@pytest.mark.parametrize(
    ("fault", "caught"),
    [("logit", {"logits"}), ("weight", {"weights"}), ("padding", {"pictures"}), ("template", {"prompts"})],
)
def test_planted_faults_are_caught(plan: Plan, clean: Verdict, fault: str, caught: set[str]) -> None:
    verdict = prove(replace(plan, plant=fault), launch)
    assert (verdict.status, verdict.exit_status) == ("changed", 1)
    assert caught <= differing(verdict)
    assert not differing(verdict) & ({"weights", "questions", "prompts", "pictures"} - caught)
    assert any(f"planted in the F-LMM run: {fault}" in note for note in verdict.notes)
    if fault == "template":
        assert verdict.first is not None
        assert verdict.first.first is not None
        assert "the USER: <image>" in verdict.first.first.right
        assert "the USER: <image>" not in verdict.first.first.left


def test_every_fault_has_a_name_on_the_command_line() -> None:
    assert set(NAMED) == set(FAULTS)


def test_a_killed_run_goes_on_where_it_was(plan: Plan, clean: Verdict) -> None:
    calls: list[RunSpec] = []

    def watched(spec: RunSpec, folder: Path) -> RunRecord:
        calls.append(spec)
        return launch(spec, folder)

    folder = FOLDERS["F-LMM", "", 1, None]
    whole = list(read_answers(folder / "answers.jsonl"))
    # Killed in the middle of writing the third answer.
    lines = (folder / "answers.jsonl").read_text().splitlines()
    (folder / "answers.jsonl").write_text("\n".join([*lines[:2], lines[2][:20]]))
    (folder / "arm.json").unlink()
    verdict = prove(plan, watched)
    assert [spec.role for spec in calls] == ["F-LMM"], "the stock run is there already"
    assert verdict.runs[1].resumed == 1, "the first is asked again for its logits, the second is on disk"
    assert list(verdict.runs[1].answers.values()) == whole
    assert verdict.unchanged
    assert prove(plan, watched).unchanged
    assert len(calls) == 1, "a finished comparison runs nothing"


def test_other_settings_are_measured_on_the_stock_model_too(plan: Plan, clean: Verdict) -> None:
    verdict = prove(replace(plan, batch_size=3), launch)
    assert [run.role for run in verdict.runs][:3] == ["stock", "F-LMM", "stock, settings of F-LMM"]
    assert (verdict.mode, verdict.status) == ("measured", "unchanged")
    assert verdict.runs[2].adapter == "plain transformers: asked for"
    assert not any(check.differing for check in verdict.same)
    assert {check.name: check.compared for check in verdict.same}["generated ids"] == 4
    assert verdict.runs[1].grounded["asked"] == 2, "once after each batch: of one, of three"


def test_a_kernel_that_the_stock_adapter_chose_by_itself_is_not_blamed_on_the_plugin(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lmms_eval.models.simple.llava_hf import LlavaHf

    made = LlavaHf.__init__

    def eager(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **{**options, "attn_implementation": "eager"})

    monkeypatch.setattr(LlavaHf, "__init__", eager)
    verdict = prove(replace(plan, out=tmp_path), launch)
    assert [run.settings["kernel"] for run in verdict.runs] == ["eager", "sdpa", "sdpa"]
    assert verdict.runs[2].adapter == "plain transformers: asked for"
    assert (verdict.mode, verdict.status) == ("measured", "unchanged")
    assert "logits" in differing(verdict), "the kernel moves bits, or this test shows nothing"
    assert not any(check.differing for check in verdict.same)
    assert any("the runs differ in attn_implementation" in note for note in verdict.notes)


def test_settings_are_those_of_the_arguments() -> None:
    plan = Plan(model="flmm_llava", tasks=("mme",), out=Path("x"), model_args={"dtype": "float32", "heads": "h"})
    assert other_settings(plan) == []
    assert other_settings(replace(plan, stock_args={"dtype": "bfloat16"})) == ["dtype"]
    assert other_settings(replace(plan, batch_size=2)) == ["batch_size"]


def test_a_stock_adapter_that_does_not_work_is_replaced_and_the_verdict_says_so(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lmms_eval.models.chat.llava_hf import LlavaHf

    def broken(self: Any, requests: list[Any]) -> list[Any]:
        try:  # as llava_hf itself does: the error is logged, and the answer is empty
            self.model.generate(no_such_argument=1)
        except Exception:
            return [""] * len(requests)
        raise AssertionError("generate must refuse unknown arguments")

    monkeypatch.setattr(LlavaHf, "generate_until", broken)
    plan = replace(plan, out=tmp_path, limit=2)
    verdict = prove(plan, launch)
    assert verdict.unchanged
    assert verdict.runs[0].adapter.startswith("plain transformers: lmms-eval's llava_hf does not work here")
    assert any(verdict.runs[0].adapter in note for note in verdict.notes)
    with pytest.raises(StockUnusable):
        prove(replace(plan, stock="llava_hf"), launch)


def test_without_heads_attention_is_read_between_the_questions(plan: Plan, clean: Verdict) -> None:
    arguments = {"pretrained": plan.model_args["pretrained"]}
    verdict = prove(replace(plan, model_args=arguments), launch)
    assert verdict.unchanged
    assert verdict.runs[1].grounded == {"asked": 4, "failed": 0}
    assert verdict.runs[0] == clean.runs[0], "other heads need no other stock run"
    assert any("no heads" in note for note in verdict.notes)


def test_a_fresh_start_asks_the_judge_again(tmp_path: Path) -> None:
    def stopped(spec: RunSpec, folder: Path) -> RunRecord:
        raise RunFailed("enough seen")

    judged = tmp_path / "judge.jsonl"
    plan = Plan(model="flmm_tiny", tasks=("flmm_tiny_choice",), out=tmp_path)
    for fresh in (False, True):
        judged.write_text("")
        with pytest.raises(RunFailed, match="enough seen"):
            prove(replace(plan, fresh=fresh), stopped)
        assert judged.exists() is not fresh


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_changes_chat_on_purpose_is_refused() -> None:
    with pytest.raises(UnknownArgument, match="on purpose"):
        shared({"visual_cot": "v1"})


def test_both_runs_get_the_same_model_and_nothing_else() -> None:
    given = {"pretrained": "p", "dtype": "float32", "heads": "h", "merge": "max", "revision": None}
    assert shared(given) == {"pretrained": "p", "dtype": "float32"}
    assert stock_arguments({"dtype": "float32", "heads": "h"}, "d") == {
        "pretrained": "d",
        "dtype": "float32",
    }
    with pytest.raises(UnknownArgument, match="pretrained="):
        stock_arguments({}, "")


def test_an_unknown_model_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UnknownArgument, match="flmm_llava"):
        prove(Plan(model="llava_hf", tasks=("mme",), out=tmp_path), launch)


def test_a_run_that_fails_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"

    class Done:
        returncode = 1

    def run(command: list[str], **_: Any) -> Done:
        assert command[-2:] == [str(folder / "spec.json"), str(folder)]
        assert RunSpec.read(folder / "spec.json").model == "flmm_tiny"
        (folder / "log.txt").write_text("said\nthe last word\n")
        return Done()

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(RunFailed, match=r"log\.txt.*the last word"):
        in_a_process(RunSpec(role="stock", model="flmm_tiny", model_args={}, tasks=("mme",)), folder)


# --- plain transformers ---------------------------------------------------------------------------------------------


def test_the_plain_model_owes_nothing_to_this_package() -> None:
    tree = ast.parse(Path(plain_lmms_eval.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not any(name.startswith(("flmm_plugin", ".")) for name in names), names
            assert not getattr(node, "level", 0)


def choices(role: str, inner: Any, folder: Path, stock: str = "") -> tuple[Any, list[Any]]:
    """A watched model and four log-likelihood requests about two documents."""
    spec = RunSpec(role=role, model="flmm_llava", model_args={}, tasks=("choices",), stock=stock)
    watched = WatchedModel(Recorder(spec, inner, folder / f"{role}.jsonl"))

    def picture(doc: Any) -> list[Any]:
        return [doc["image"]]

    return watched, [
        SimpleNamespace(args=("Is there a dog?", said, picture, doc_id, "choices", "test"), metadata={})
        for doc_id in range(2)
        for said in (" a dog", " no")
    ]


def test_log_likelihoods_of_the_plain_model_are_ours(
    plan: Plan, noise_image: Callable[..., Image.Image], tmp_path: Path
) -> None:
    scores = []
    for role, stock in (("F-LMM", ""), ("stock", "plain")):
        spec = RunSpec(role=role, model=plan.model, model_args=plan.model_args, tasks=("choices",), stock=stock)
        if stock:
            spec = replace(spec, model_args=shared(plan.model_args))
        inner = make_model(spec)[1]
        inner.task_dict["choices"] = {"test": [{"image": noise_image(seed=1)}, {"image": noise_image(seed=2)}]}
        watched, requests = choices(role, inner, tmp_path, stock)
        scores.append(watched.loglikelihood(requests))
        assert list(watched.recorder.answers) == [f"loglikelihood/choices/{d}/{n}" for d in (0, 1) for n in (0, 1)]
        assert [answer.score for answer in read_answers(tmp_path / f"{role}.jsonl")] == scores[-1]
        # Between log-likelihoods too, so that leaked state would show in the next one.
        assert watched.recorder.grounded == {"asked": 0 if stock else 4, "failed": 0}
    assert scores[0] == scores[1]
    assert len(set(scores[0])) == 4


class Raises:
    """A model that cannot do what it is asked for."""

    is_simple = False
    task_dict: dict[str, Any] = {}  # noqa: RUF012

    def loglikelihood(self, requests: list[Any]) -> Any:
        raise ValueError("1 picture too few")


def test_what_the_stock_adapter_raises_at_once_means_that_it_does_not_work_here(tmp_path: Path) -> None:
    watched, requests = choices("stock", Raises(), tmp_path, "auto")
    with pytest.raises(StockUnusable, match="loglikelihood: ValueError: 1 picture too few"):
        watched.loglikelihood(requests)
    watched, requests = choices("F-LMM", Raises(), tmp_path)
    with pytest.raises(ValueError, match="too few"):
        watched.loglikelihood(requests)


def test_a_task_that_only_says_it_wants_a_plain_answer_is_compared() -> None:
    assert marks_of({"flmm_visual_cot": "none", "max_new_tokens": 4}) == []
    assert marks_of({"flmm_visual_cot": "v1"}) == ["flmm_visual_cot"]
    assert marks_of({"flmm_ground": True}) == ["flmm_ground"]


def test_the_embedded_model_reads_synthetic_scenes_where_a_benchmark_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lmms_eval.tasks

    seen: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "_cached", lambda *_: False)
    monkeypatch.setattr("lmms_eval.evaluator.simple_evaluate", lambda **given: seen.append(given) or {"results": {}})
    pope = lmms_eval.tasks.TaskManager(
        include_path=str(Path(lmms_eval.tasks.__file__).parent / "pope"), include_defaults=False
    )
    spec = RunSpec(role="stock", model="flmm_tiny", tasks=("pope",), stock="plain")
    model = SimpleNamespace(is_simple=False, task_dict={})
    assert evaluate("plain transformers", Recorder(spec, model, tmp_path / "a"), tmp_path, None, pope)[0] == {}
    assert seen[0]["task_manager"].flmm_changes["pope"]["dataset_kwargs"] == {"repo": "lmms-lab-encoder/POPE"}


def test_data_that_is_not_here_is_named_before_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(spec: Any, folder: Path) -> Any:
        raise AssertionError("a run was started")

    monkeypatch.setattr(preflight, "_cached", lambda *_: False)
    monkeypatch.setattr(preflight, "_hub_answers", lambda: False)
    with pytest.raises(NotReady, match="GQA"):
        prove(Plan(model="flmm_tiny", tasks=("gqa",), out=tmp_path), never)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"tasks": ("mmee",)}, "'mme'"), ({"device": "gpu"}, "'cuda'"), ({"model_args": {"hedas": "x"}}, "'heads'")],
)
def test_names_are_checked_before_a_run(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    def never(spec: Any, folder: Path) -> Any:
        raise AssertionError("a run was started")

    plan = Plan(**{"model": "flmm_tiny", "tasks": ("mme",), "out": tmp_path, "scenes": 0, **change})
    with pytest.raises(UnknownArgument, match=said):
        prove(plan, never)
