"""``flmm preserve`` on the command line, and the places that advertise its lines."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from flmm_plugin import cli
from flmm_plugin.adapters.preservation import proof
from flmm_plugin.adapters.preservation.verdict import Answer, RunRecord, Verdict, compare, decide, logits_check
from flmm_plugin.errors import DataNotFound, UnknownArgument
from flmm_plugin.options import arguments_of

ROOT = Path(__file__).resolve().parents[3]
WORKFLOW = ROOT / ".github" / "workflows" / "preserve.yml"


def verdict(text: str = "yes", *, alone: bool = False) -> Verdict:
    def record(role: str, said: str, key: str = "generate_until/mme/0/0") -> RunRecord:
        one = Answer(key, "mme", 0, "is it ?", text=said, ids=(1, 2))
        return RunRecord(role, "llava_hf", {}, {key: one}, {"mme": {"score,none": 1.0}}, {"w": "1"})

    stock, ours = (
        record("stock", "yes"),
        record("F-LMM", text, "generate_until/mme/9/0" if alone else "generate_until/mme/0/0"),
    )
    return decide([stock, ours], compare(stock, ours, logits_check(True, "equal")))


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, made: Any, *words: str) -> tuple[int, Any]:
    plans: list[Any] = []

    def preserve(plan: Any) -> Verdict:
        plans.append(plan)
        if isinstance(made, Exception):
            raise made
        result: Verdict = made
        return result

    monkeypatch.setattr(proof, "prove", preserve)
    given = ["preserve", "--model", "flmm_tiny", "--tasks", "mme,pope", "--device", "cpu", "--out", str(tmp_path)]
    return cli.main([*given, *words]), plans[0]


def test_the_exit_status_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, verdict())[0] == 0
    assert "CHAT UNCHANGED" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, verdict("no"))[0] == 1
    assert "first difference: texts" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, verdict(alone=True))[0] == 2
    assert "COULD NOT COMPARE" in capsys.readouterr().out
    assert run(monkeypatch, tmp_path, DataNotFound("no data: fetch it"))[0] == 2
    assert "COULD NOT COMPARE: DataNotFound: no data: fetch it" in capsys.readouterr().err


def test_the_verdict_is_written_and_printed_as_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, plan = run(
        monkeypatch, tmp_path, verdict("no"), "--json", "--junit", str(tmp_path / "deep" / "j.xml"), "--limit", "3",
        "--batch_size", "2", "--model_args", "pretrained=a/b,revision=main",
    )  # fmt: skip
    assert status == 1
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "verdict.json").read_text())
    assert (tmp_path / "deep" / "j.xml").read_text() == (tmp_path / "verdict.xml").read_text()
    assert (plan.tasks, plan.limit, plan.batch_size) == (("mme", "pope"), 3.0, 2)
    assert plan.model_args == {"pretrained": "a/b", "revision": "main"}


def test_arguments_are_read_as_lmms_eval_reads_them() -> None:
    from lmms_eval.utils import simple_parse_args_string

    text = "pretrained=a/b=c,limit=3,share=0.5,fast=True,off=false,name=3x"
    assert arguments_of(text) == simple_parse_args_string(text)
    assert arguments_of("") == {}
    with pytest.raises(UnknownArgument, match="name=value"):
        arguments_of("pretrained")


# --- what is advertised --------------------------------------------------------------------------------------------


def advertised() -> list[str]:
    """Every line of the documentation and the workflow that begins with ``flmm preserve``."""
    texts = [
        path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "ci.md", ROOT / "tasks/qa/README.md", WORKFLOW)
    ]
    lines = [line.strip() for text in texts for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("flmm preserve --")]


def test_advertised_lines_parse() -> None:
    lines = advertised()
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(re.split(r"\s[|>#]", line)[0])[1:]
        for name, value in {"$LIMIT": "4", "$fault": "logit"}.items():
            words = [value if word == name else word for word in words]
        args = cli.build_parser("preserve").parse_args(words)
        assert args.tasks, line


def test_the_workflow_is_reusable_and_runs_on_the_embedded_model() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as a truth value
    inputs = triggers["workflow_call"]["inputs"]
    assert set(triggers) == {"pull_request", "workflow_dispatch", "workflow_call"}
    assert all({"type", "default", "description"} == set(one) for one in inputs.values())
    assert (inputs["model"]["default"], inputs["tasks"]["default"]) == ("flmm_tiny", "mme")
    for name, default in ((name, one["default"]) for name, one in inputs.items() if name != "runner"):
        # Without inputs (a pull request) the same defaults hold.
        assert workflow["env"][name.upper()] == f"${{{{ inputs.{name} || '{default}' }}}}"
    for step in workflow["jobs"]["preserve"]["steps"]:
        assert "${{" not in step.get("run", ""), "inputs reach scripts through the environment alone"


def test_the_group_has_the_paper_s_eight_and_lmms_eval_has_them_all() -> None:
    import lmms_eval.tasks

    group = yaml.safe_load((ROOT / "tasks/qa/_group_flmm_qa.yaml").read_text(encoding="utf-8"))
    assert group["group"] == "flmm_qa"
    assert len(group["task"]) == len(set(group["task"])) == 8
    folder = Path(lmms_eval.tasks.__file__).parent
    places = {"llava_in_the_wild": "llava-in-the-wild", "mmbench_en_dev": "mmbench", "vqav2_val": "vqav2"}
    for task in group["task"]:
        texts = [path.read_text(encoding="utf-8") for path in (folder / places.get(task, task)).glob("*.yaml")]
        assert any(re.search(rf"""^task: ["']?{task}["']?\s*$""", text, re.MULTILINE) for text in texts), task
