"""The result file says how its numbers were made, and only of the model that made them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmms_eval.loggers.evaluation_tracker import EvaluationTracker

import flmm_plugin
from flmm_plugin.adapters.answering.provenance import commit
from flmm_plugin.adapters.lmms_eval import provenance
from flmm_plugin.reports.lmms_eval_files import read_run


class Loaded:
    """As much of a loaded `FlmmModel` as a record needs."""

    batch_size = 4
    world_size = 2

    def __init__(self) -> None:
        manifest = SimpleNamespace(
            sha256="feed" * 16, backbone="b", data="d", created_by="c", sam="vit_l",
            sam_prompts={"box": True, "mask": True, "text": False},
            notes={"source": "https://host/heads", "source_file": "frozen.pth"},
        )  # fmt: skip
        backbone = SimpleNamespace(
            name="org/lmm", family="llava", revision=None, dtype="torch.bfloat16", device="cpu",
            kernel="sdpa",
        )  # fmt: skip
        heads = SimpleNamespace(manifest=manifest, mask_refiner=object())
        self.lmm = SimpleNamespace(backbone=backbone, heads=heads, merge="mean")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_latest", None)
    monkeypatch.setattr(EvaluationTracker, "save_results_aggregated", EvaluationTracker.save_results_aggregated)


def saved(folder: Path, backend: str) -> dict[str, Any]:
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name_sanitized = "m"
    config = {"model": "flmm_llava", "model_args": "", "model_backend": backend, "batch_size": 4}
    results = {"results": {"t": {"cIoU,none": 1.0}}, "config": config, "configs": {}, "n-samples": {}}
    tracker.save_results_aggregated(results, {}, "20260101_000000")
    (path,) = folder.rglob("*_results.json")
    content: dict[str, Any] = json.loads(path.read_text())
    return {**content, "path": path}


def test_the_record_travels_from_model_to_report(tmp_path: Path) -> None:
    model = Loaded()
    provenance.remember(model, {"heads": "h.safetensors", "device": None})
    content = saved(tmp_path, f"{__name__}.Loaded (chat)")
    assert content["flmm"]["dtype"] == "bfloat16"
    assert content["flmm"]["heads"]["source"] == "https://host/heads"
    run = read_run(content["path"])
    assert run.flmm
    assert (run.options["heads"], run.options["heads.prompts"], run.weights) == (
        "h.safetensors",
        "mask + box",
        "org/lmm",
    )
    said = run.tasks["t"].provenance
    assert (said.kernel, said.dtype, said.batch_size, said.device, said.processes) == (
        "sdpa",
        "bfloat16",
        "4",
        "cpu",
        "2",
    )
    assert said.heads == "feed" * 4
    assert said.commit.startswith(flmm_plugin.__version__)
    assert said.torch
    assert said.transformers
    assert said.harness.startswith("lmms-eval 0.")


def test_another_models_file_gets_no_record(tmp_path: Path) -> None:
    provenance.remember(Loaded(), {})
    content = saved(tmp_path, "lmms_eval.models.simple.llava_hf.LlavaHf (simple)")
    assert "flmm" not in content
    assert not read_run(content["path"]).tasks["t"].provenance.kernel


def test_wrapping_twice_is_wrapping_once() -> None:
    provenance.remember(Loaded(), {})
    once = EvaluationTracker.save_results_aggregated
    provenance.remember(Loaded(), {})
    assert EvaluationTracker.save_results_aggregated is once


def test_a_harness_without_that_method_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(EvaluationTracker, "save_results_aggregated")
    said: list[str] = []
    monkeypatch.setattr(provenance, "_warn_once", said.append)
    assert provenance.remember(Loaded(), {})["kernel"] == "sdpa"
    assert "save_results_aggregated" in said[0]


def test_commit_is_of_this_source_or_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = commit.__wrapped__()
    assert said is None or len(said.removesuffix("-dirty")) == 40
    # An installed copy inside somebody else's repository must not borrow its commit.
    import subprocess

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "flmm_plugin").mkdir()
    (tmp_path / "flmm_plugin" / "__init__.py").touch()
    monkeypatch.setattr(flmm_plugin, "__file__", str(tmp_path / "flmm_plugin" / "__init__.py"))
    assert commit.__wrapped__() is None
