"""What a run needs and costs, before it runs."""

from __future__ import annotations

import doctest
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.cli import main, plan_memory, plan_time
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.measured import Measurement, remember
from flmm_plugin.options import LoadOptions
from flmm_plugin.tasks import split_sizes
from flmm_plugin.tasks.split_sizes import samples_of

H100 = "cuda (NVIDIA H100 80GB HBM3)"
SIZE = plan_memory.ModelSize(
    7 * 10**9, "bfloat16", 2, "its configuration", 576, "its configuration", 32, 32, 4096, 8192, 11008
)
MEASURED = Measurement("mme", "a/7b", H100, "bfloat16", 1, 100, 20.0, 7 * 10**9, {"transformers": "5"})


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FLMM_DATA", raising=False)


def stage(**change: Any) -> plan_time.Stage:
    given: dict[str, Any] = {
        "model": "a/7b", "device": H100, "size": SIZE, "heads": None, "batch": 1, "known": [MEASURED], **change,
    }  # fmt: skip
    return plan_time.stage("mme", given.pop("documents", 2374), **given)


def test_what_was_measured_on_such_a_device_counts() -> None:
    found = stage(device="cuda (H100)")
    assert found.measured
    assert found.each == pytest.approx(0.2)
    assert found.seconds == pytest.approx(474.8)
    assert "100 documents" in found.source
    slow = replace(MEASURED, batch_size=8, seconds=80.0)
    assert stage(known=[MEASURED, slow], batch=8).each == pytest.approx(0.8)


def test_the_nearest_measurement_is_scaled_and_said_to_be_an_estimate() -> None:
    twice = stage(model="b/14b", size=replace(SIZE, parameters=14 * 10**9))
    assert not twice.measured
    assert twice.each == pytest.approx(0.4)
    assert twice.source.startswith("estimate: 2 x that of a/7b")
    other = stage(device="cuda (NVIDIA A100-SXM4-80GB)")
    assert other.each == pytest.approx(0.2 * 989 / 312)
    assert stage(model="b/14b", size=replace(SIZE, parameters=14 * 10**9), grows=False).each == pytest.approx(0.2)


def test_where_nothing_was_measured_there_is_arithmetic_or_nothing() -> None:
    found = stage(known=[], writes=0)
    assert found.each == pytest.approx(2 * 7e9 * 640 / (0.4 * 989e12))
    assert "assumed" in found.source
    assert stage(known=[]).each > found.each  # an answer is written
    heads = plan_memory.HeadsSize(9 * 10**6, 312 * 10**6, 308 * 10**6, 4096, 16, "vit_l", "")
    assert stage(known=[], writes=0, heads=heads).each > found.each
    assert stage(known=[], size=None).each is None
    assert stage(known=[], device="cuda (Unheard Of)").each is None
    assert stage(documents=None).seconds is None


def test_devices_are_known_by_name() -> None:
    assert plan_time.device_of("h100")[1] == next(gpu for gpu in plan_time.GPUS if gpu.name == "H100")
    assert plan_time.device_of("cpu") == ("cpu", None)
    for name in ("H10", "cuda:99"):
        with pytest.raises(UnknownArgument, match="H100"):
            plan_time.device_of(name)
    for module in (plan_time, plan_memory, split_sizes):
        assert doctest.testmod(module).failed == 0


def test_weights_are_counted_from_the_configuration_alone(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        vocab_size=128,
    )  # fmt: skip
    vision = CLIPVisionConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    config = LlavaConfig(text_config=text, vision_config=vision, image_seq_length=16, dtype="float16")
    config.save_pretrained(tmp_path / "llava")
    real = AutoModelForImageTextToText.from_config(config)
    size = plan_memory.model_size(str(tmp_path / "llava"), LoadOptions())
    assert size is not None
    assert size.parameters == sum(one.numel() for one in real.parameters())
    assert (size.dtype, size.bytes_each, size.image_tokens, size.cache_each) == ("float16", 2, 16, 2 * 2 * 16)
    four = plan_memory.model_size(str(tmp_path / "llava"), LoadOptions(load_in_4bit=True))
    assert four is not None
    assert four.weight_bytes == size.parameters // 2
    heads = plan_memory.heads_size("llava", size, "auto", None)
    assert heads is not None
    assert (heads.sam, heads.sam_cells) == ("vit_l", 64 * 64)
    lines = {line.name: line.size for line in plan_memory.memory(size, heads, batch=2, on_gpu=True)}
    assert lines["LMM"] == 2 * size.parameters
    assert lines["KV cache"] == 2 * 64 * (16 + 128) * 2 * 2
    assert lines["SAM vit_l"] == 4 * heads.sam_parameters
    trained = {line.name: line.size for line in plan_memory.memory(size, heads, batch=1, on_gpu=False, trains=True)}
    assert trained["heads"] == 4 * lines["heads"]
    assert "CUDA" not in trained


def test_a_name_says_the_size_where_no_configuration_is_here() -> None:
    size = plan_memory.model_size("owner/chat-1.3b-it", LoadOptions())
    assert size is not None
    assert (size.parameters, size.known_from) == (1_300_000_000, "the name of the model")
    assert plan_memory.model_size("owner/chat", LoadOptions()) is None


def test_an_evaluation_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    remember(Measurement("flmm_tiny_refcoco", "flmm_tiny", "cpu", "float32", 1, 10, 5.0, 3 * 10**6))
    words = ["plan", "--model", "flmm_tiny", "--tasks", "flmm_tiny_refcoco,mme", "--limit", "40", "--device", "cpu"]
    assert main(words) == 0
    text = capsys.readouterr().out
    for word in ("nothing is missing", "20 s", "measured: 10 documents", "estimate", "synthetic scenes", "KV cache"):
        assert word in text
    assert main([*words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    (work,) = plan["works"]
    assert work["memory_bytes"] == sum(line["size"] for line in work["memory"])
    assert [one["measured"] for one in work["stages"]] == [True, False]
    assert not list(Path.cwd().glob("data"))


def test_what_is_missing_is_listed_and_nothing_is_fetched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "table1", "--backbones", "llava-1.5-7b", "--tasks", "mme,flmm_png", "--device", "H100"]) == 1
    text = capsys.readouterr().out
    for word in (
        "hf download llava-hf/llava-1.5-7b-hf",
        "flmm data download png",
        "heads",
        "8,380 x",
        "2,374 x",
        "7.00 G",
    ):
        assert word in text
    assert not (Path.cwd() / "data").exists()


def test_a_training_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "flmm_tiny", "epochs=2", "--device", "cpu", "--json"]) == 0
    (work,) = json.loads(capsys.readouterr().out)["works"]
    stages = {one["name"]: one["documents"] for one in work["stages"]}
    assert stages["train: heads"] == 2 * stages["train: LMM"]
    assert work["cache"] > 0
    assert main(["plan", "flmm_llava", "--device", "A100"]) == 1
    text = capsys.readouterr().out
    for word in ("188,988 samples", "feature cache", "vit_l", "flmm data download"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--tasks"),
        (["flmm_tinny"], "'flmm_tiny'"),
        (["table9"], "table9"),
        (["table1"], "--backbones"),
        (["flmm_tiny", "--model", "flmm_tiny"], "two plans"),
        (["--model", "flmm_tinny", "--tasks", "mme"], "'flmm_tiny'"),
        (["--model", "flmm_tiny:hedas=x", "--tasks", "mme"], "'heads'"),
        (["--model", "flmm_tiny", "--tasks", "mmee"], "'mme'"),
        (["--model", "flmm_tiny", "--tasks", "mme", "--device", "H10"], "H100"),
        (["flmm_tiny", "epoch=1"], "epochs"),
    ],
)
def test_what_does_not_exist_is_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 2
    assert said in capsys.readouterr().err


def test_samples_of_a_split_that_nobody_counted_are_refused() -> None:
    assert samples_of("png", "val") == 8380
    with pytest.raises(UnknownArgument, match="refcoco"):
        samples_of("refcoco", "dev")
