"""`flmm preserve` through lmms-eval's own evaluator: a tiny random LLaVA, its stock adapter, and planted faults.

Random weights answer nothing right: what must hold is that equal is called equal, and that every fault is caught.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.adapters.answering import identity
from flmm_plugin.adapters.lmms_eval import preserve_arm, preserve_plain, preserve_stock
from flmm_plugin.adapters.lmms_eval.preserve import ArmFailed, Plan, in_a_process, other_settings, preserve
from flmm_plugin.adapters.lmms_eval.preserve_model import WatchedModel
from flmm_plugin.adapters.lmms_eval.preserve_stock import StockUnusable
from flmm_plugin.adapters.preserving.faults import FAULTS
from flmm_plugin.adapters.preserving.record import ArmSpec, read_answers
from flmm_plugin.adapters.preserving.watch import GenerateWatch
from flmm_plugin.cli.preserve import FAULTS as NAMED
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.reports.preservation import Arm, Verdict

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
    """An arm is kept under a hash of this package's code, which an editor may save while the tests run."""
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


def launch(spec: ArmSpec, folder: Path) -> Arm:
    FOLDERS[spec.role, spec.plant, spec.batch_size, spec.limit] = folder
    return preserve_arm.run_arm(spec, folder, task_manager=index())


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
    return preserve(plan, launch)


def differing(verdict: Verdict) -> set[str]:
    return {check.name for check in verdict.checks if check.differing}


def test_chat_beside_grounding_is_the_stock_adapter_s(clean: Verdict) -> None:
    assert (clean.status, clean.mode, clean.exit_status) == ("unchanged", "exact", 0)
    stock, ours = clean.arms
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
    verdict = preserve(replace(plan, plant=fault), launch)
    assert (verdict.status, verdict.exit_status) == ("changed", 1)
    assert caught <= differing(verdict)
    assert not differing(verdict) & ({"weights", "questions", "prompts", "pictures"} - caught)
    assert any(f"planted in the F-LMM arm: {fault}" in note for note in verdict.notes)
    if fault == "template":
        assert verdict.first is not None
        assert verdict.first.first is not None
        assert "the USER: <image>" in verdict.first.first.right
        assert "the USER: <image>" not in verdict.first.first.left


def test_every_fault_has_a_name_on_the_command_line() -> None:
    assert set(NAMED) == set(FAULTS)


def test_a_killed_arm_goes_on_where_it_was(plan: Plan, clean: Verdict) -> None:
    calls: list[ArmSpec] = []

    def watched(spec: ArmSpec, folder: Path) -> Arm:
        calls.append(spec)
        return launch(spec, folder)

    folder = FOLDERS["F-LMM", "", 1, None]
    whole = list(read_answers(folder / "answers.jsonl"))
    # Killed in the middle of writing the third answer.
    lines = (folder / "answers.jsonl").read_text().splitlines()
    (folder / "answers.jsonl").write_text("\n".join([*lines[:2], lines[2][:20]]))
    (folder / "arm.json").unlink()
    verdict = preserve(plan, watched)
    assert [spec.role for spec in calls] == ["F-LMM"], "the stock arm is there already"
    assert verdict.arms[1].resumed == 1, "the first is asked again for its logits, the second is on disk"
    assert list(verdict.arms[1].answers.values()) == whole
    assert verdict.unchanged
    assert preserve(plan, watched).unchanged
    assert len(calls) == 1, "a finished comparison runs nothing"


def test_other_settings_are_measured_on_the_stock_model_too(plan: Plan, clean: Verdict) -> None:
    verdict = preserve(replace(plan, batch_size=3), launch)
    assert [arm.role for arm in verdict.arms][:3] == ["stock", "F-LMM", "stock, settings of F-LMM"]
    assert (verdict.mode, verdict.status) == ("measured", "unchanged")
    assert verdict.arms[2].adapter == "plain transformers: asked for"
    assert not any(check.differing for check in verdict.same)
    assert {check.name: check.compared for check in verdict.same}["generated ids"] == 4
    assert verdict.arms[1].grounded["asked"] == 2, "once after each batch: of one, of three"


def test_a_kernel_that_the_stock_adapter_chose_by_itself_is_not_blamed_on_the_plugin(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lmms_eval.models.simple.llava_hf import LlavaHf

    made = LlavaHf.__init__

    def eager(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **{**options, "attn_implementation": "eager"})

    monkeypatch.setattr(LlavaHf, "__init__", eager)
    verdict = preserve(replace(plan, out=tmp_path), launch)
    assert [arm.settings["kernel"] for arm in verdict.arms] == ["eager", "sdpa", "sdpa"]
    assert verdict.arms[2].adapter == "plain transformers: asked for"
    assert (verdict.mode, verdict.status) == ("measured", "unchanged")
    assert "logits" in differing(verdict), "the kernel moves bits, or this test shows nothing"
    assert not any(check.differing for check in verdict.same)
    assert any("the arms differ in attn_implementation" in note for note in verdict.notes)


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
    verdict = preserve(plan, launch)
    assert verdict.unchanged
    assert verdict.arms[0].adapter.startswith("plain transformers: lmms-eval's llava_hf does not work here")
    assert any(verdict.arms[0].adapter in note for note in verdict.notes)
    with pytest.raises(StockUnusable):
        preserve(replace(plan, stock="llava_hf"), launch)


def test_without_heads_attention_is_read_between_the_questions(plan: Plan, clean: Verdict) -> None:
    arguments = {"pretrained": plan.model_args["pretrained"]}
    verdict = preserve(replace(plan, model_args=arguments), launch)
    assert verdict.unchanged
    assert verdict.arms[1].grounded == {"asked": 4, "failed": 0}
    assert verdict.arms[0] == clean.arms[0], "other heads need no other stock arm"
    assert any("no heads" in note for note in verdict.notes)


def test_a_fresh_start_asks_the_judge_again(tmp_path: Path) -> None:
    def stopped(spec: ArmSpec, folder: Path) -> Arm:
        raise ArmFailed("enough seen")

    judged = tmp_path / "judge.jsonl"
    plan = Plan(model="flmm_tiny", tasks=("flmm_tiny_choice",), out=tmp_path)
    for fresh in (False, True):
        judged.write_text("")
        with pytest.raises(ArmFailed, match="enough seen"):
            preserve(replace(plan, fresh=fresh), stopped)
        assert judged.exists() is not fresh


# --- what is refused ------------------------------------------------------------------------------------------------


def test_what_changes_chat_on_purpose_is_refused() -> None:
    with pytest.raises(UnknownArgument, match="on purpose"):
        preserve_stock.shared({"visual_cot": "v1"})


def test_both_arms_get_the_same_model_and_nothing_else() -> None:
    given = {"pretrained": "p", "dtype": "float32", "heads": "h", "merge": "max", "revision": None}
    assert preserve_stock.shared(given) == {"pretrained": "p", "dtype": "float32"}
    assert preserve_stock.shared_arguments({"dtype": "float32", "heads": "h"}, "d") == {
        "pretrained": "d",
        "dtype": "float32",
    }
    with pytest.raises(UnknownArgument, match="pretrained="):
        preserve_stock.shared_arguments({}, "")


def test_an_unknown_model_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UnknownArgument, match="flmm_llava"):
        preserve(Plan(model="llava_hf", tasks=("mme",), out=tmp_path), launch)


def test_an_arm_that_fails_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "arm"

    class Done:
        returncode = 1

    def run(command: list[str], **_: Any) -> Done:
        assert command[-2:] == [str(folder / "spec.json"), str(folder)]
        assert ArmSpec.from_json(json.loads((folder / "spec.json").read_text())).model == "flmm_tiny"
        (folder / "log.txt").write_text("said\nthe last word\n")
        return Done()

    monkeypatch.setattr("subprocess.run", run)
    with pytest.raises(ArmFailed, match=r"log\.txt.*the last word"):
        in_a_process(ArmSpec(role="stock", model="flmm_tiny", model_args={}, tasks=("mme",)), folder)


# --- plain transformers ---------------------------------------------------------------------------------------------


def test_the_plain_arm_owes_nothing_to_this_package() -> None:
    tree = ast.parse(Path(preserve_plain.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert not any(name.startswith(("flmm_plugin", ".")) for name in names), names
            assert not getattr(node, "level", 0)


def choices(role: str, inner: Any, folder: Path, stock: str = "") -> tuple[Any, list[Any]]:
    """A watched model and four log-likelihood requests about two documents."""
    spec = ArmSpec(role=role, model="flmm_llava", model_args={}, tasks=("choices",), stock=stock)
    watched = WatchedModel(inner, spec, GenerateWatch(), folder / f"{role}.jsonl")

    def picture(doc: Any) -> list[Any]:
        return [doc["image"]]

    return watched, [
        SimpleNamespace(args=("Is there a dog?", said, picture, doc_id, "choices", "test"), metadata={})
        for doc_id in range(2)
        for said in (" a dog", " no")
    ]


def test_log_likelihoods_of_the_plain_arm_are_ours(
    plan: Plan, noise_image: Callable[..., Image.Image], tmp_path: Path
) -> None:
    scores = []
    for role, stock in (("F-LMM", ""), ("stock", "plain")):
        spec = ArmSpec(role=role, model=plan.model, model_args=plan.model_args, tasks=("choices",), stock=stock)
        if stock:
            spec = replace(spec, model_args=preserve_stock.shared(plan.model_args))
        inner = preserve_arm.make_model(spec)[2]
        inner.task_dict["choices"] = {"test": [{"image": noise_image(seed=1)}, {"image": noise_image(seed=2)}]}
        watched, requests = choices(role, inner, tmp_path, stock)
        scores.append(watched.loglikelihood(requests))
        assert list(watched.answers) == [f"loglikelihood/choices/{d}/{n}" for d in (0, 1) for n in (0, 1)]
        assert [answer.score for answer in read_answers(tmp_path / f"{role}.jsonl")] == scores[-1]
        # Between log-likelihoods too, so that leaked state would show in the next one.
        assert watched.grounded == {"asked": 0 if stock else 4, "failed": 0}
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
    from flmm_plugin.adapters.lmms_eval import preserve_model

    assert preserve_model._marks({"flmm_visual_cot": "none", "max_new_tokens": 4}) == []
    assert preserve_model._marks({"flmm_visual_cot": "v1"}) == ["flmm_visual_cot"]
    assert preserve_model._marks({"flmm_ground": True}) == ["flmm_ground"]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"tasks": ("mmee",)}, "'mme'"), ({"device": "gpu"}, "'cuda'"), ({"model_args": {"hedas": "x"}}, "'heads'")],
)
def test_names_are_checked_before_an_arm_runs(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    def never(spec: Any, folder: Path) -> Any:
        raise AssertionError("an arm was run")

    plan = Plan(**{"model": "flmm_tiny", "tasks": ("mme",), "out": tmp_path, "scenes": 0, **change})
    with pytest.raises(UnknownArgument, match=said):
        preserve(plan, never)
