"""Through lmms-eval's own evaluator: a tiny random LLaVA on disk, random heads, official files, no hub.

Random weights ground nothing: these tests hold what must be true whatever the numbers are.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger
from PIL import Image

from flmm_plugin.adapters.lmms_eval import task_folder
from flmm_plugin.records import decode_rle, encode_rle, parse_masks_json
from tests.tasks import metric_names

torch = pytest.importorskip("torch")
evaluator = pytest.importorskip("lmms_eval.evaluator")

METRICS = set(metric_names.REFCOCO)


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


@pytest.fixture
def arguments(llava_folders: dict[str, Path], heads_file: Path) -> str:
    return f"pretrained={llava_folders['mha']},heads={heads_file},device=cpu"


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)


@pytest.fixture
def mme_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stock ``mme`` task's parquet under the working directory, where `datasets` looks before the hub."""
    import datasets

    rng = np.random.default_rng(0)
    rows = [
        {
            "question_id": f"{category}/{number // 2}.png",
            "image": Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)),
            "question": f"Is there a {thing} in the image? Please answer yes or no.",
            "answer": "Yes" if number % 2 else "No",
            "category": category,
        }
        for category, things in (("existence", ("dog", "cat")), ("code_reasoning", ("loop", "list")))
        for number, thing in enumerate(things)
    ]
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("question_id", "question", "answer", "category")}
        | {"image": datasets.Image()}
    )
    work = tmp_path / "work"
    target = work / "lmms-lab-encoder/MME/data/test-00000-of-00001.parquet"
    target.parent.mkdir(parents=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(target)
    monkeypatch.chdir(work)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    return work


@functools.cache
def index_for(model: str | None) -> Any:
    """lmms-eval's index as it is for a model; making one reads a thousand files."""
    from lmms_eval.tasks import TaskManager

    return TaskManager(model_name=model)


def run(tasks: list[str], model: Any = "flmm_tiny", **options: Any) -> dict[str, Any]:
    tasks_of = index_for(model if isinstance(model, str) else None)
    result: dict[str, Any] = evaluator.simple_evaluate(
        model=model, tasks=tasks, task_manager=tasks_of, bootstrap_iters=0, process_docs_parallel=1, **options
    )
    return result


def numbers(result: dict[str, Any], task: str) -> dict[str, Any]:
    return {key.split(",")[0]: value for key, value in result["results"][task].items() if key.endswith(",none")}


def test_one_command_gives_stock_and_mask_results(
    refer_folder: Callable[..., Any], mme_folder: Path, arguments: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = refer_folder()
    bad = folder.root / "coco/train2014/COCO_train2014_000000000011.jpg"
    bad.write_bytes(b"no picture")
    monkeypatch.setenv("FLMM_DATA", str(folder.root))
    result = run(["mme", "refcoco_seg", "flmm_refcoco_val_per_sentence"], model_args=arguments, batch_size=2)

    assert "mme_perception_score" in numbers(result, "mme")
    val, test_a = numbers(result, "flmm_refcoco_val"), numbers(result, "flmm_refcoco_testA")
    assert set(val) >= METRICS
    assert (val["items"], val["errors"], val["complete"]) == (3, 2, 0)
    assert (test_a["items"], test_a["errors"]) == (1, 0)
    assert numbers(result, "flmm_refcoco_testB") == {}
    sentences = numbers(result, "flmm_refcoco_val_per_sentence")
    assert (sentences["items"], sentences["errors"]) == (6, 4)
    members = {"flmm_refcoco_val", "flmm_refcoco_testA", "flmm_refcoco_testB"}
    assert set(result["group_subtasks"]["refcoco_seg"]) == members

    # The samples say what was asked and answered, and the printed numbers follow from them.
    intersection = union = 0
    for sample in result["samples"]["flmm_refcoco_val"]:
        doc, reply = sample["doc"], parse_masks_json(sample["filtered_resps"][0])
        assert "image" not in doc
        if doc["image_id"] == 11:
            assert reply.error is not None
            assert reply.error["type"] == "BadImage"
            masks = [np.zeros(folder.sizes[11], dtype=bool)] * 2
        else:
            masks = list(reply.masks)
        for mask, rle in zip(masks, doc["masks"], strict=True):
            target = decode_rle(rle)
            assert mask.shape == folder.sizes[doc["image_id"]]
            intersection, union = intersection + int((mask & target).sum()), union + int((mask | target).sum())
    assert val["cIoU"] == pytest.approx(100 * intersection / union, abs=1e-12)

    text = "".join(said)
    assert "has nothing of split testB (it has: test 1, testA 1, val 3)" in text
    assert "flmm_refcoco_val: PARTIAL RESULT over 3 of 3811 official items" in text
    assert "requests FAILED on rank 0" in text
    assert "the seal holds" in text


@pytest.mark.parametrize("force_simple", [False, True], ids=["chat", "simple"])
def test_chat_equals_the_stock_adapter_s(
    mme_folder: Path, arguments: str, llava_folders: dict[str, Path], force_simple: bool
) -> None:
    ours = run(["mme"], model_args=arguments, force_simple=force_simple)
    stock_arguments = f"pretrained={llava_folders['mha']},device=cpu,device_map=cpu"
    stock = run(["mme"], model="llava_hf", model_args=stock_arguments, force_simple=force_simple)

    def answers(result: dict[str, Any]) -> dict[int, Any]:
        return {sample["doc_id"]: sample["filtered_resps"] for sample in result["samples"]["mme"]}

    assert answers(ours) == answers(stock)
    assert len(set(map(str, answers(ours).values()))) > 1, "a model that says one thing would equal anything"
    assert numbers(ours, "mme") == numbers(stock, "mme")


def test_the_cache_answers_the_second_time_but_never_repeats_a_failure(
    refer_folder: Callable[..., Any], arguments: str, said: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = refer_folder()
    monkeypatch.setenv("FLMM_DATA", str(folder.root))
    picture = folder.root / "coco/train2014/COCO_train2014_000000000012.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(b"no picture")
    cache = str(tmp_path / "answers")
    first = run(["flmm_refcoco_val"], model_args=arguments, use_cache=cache)
    assert numbers(first, "flmm_refcoco_val")["errors"] == 1
    picture.write_bytes(whole)
    second = run(["flmm_refcoco_val"], model_args=arguments, use_cache=cache)
    assert numbers(second, "flmm_refcoco_val")["errors"] == 0
    assert any("1/2 cache hits" in line for line in said)


def test_limit_and_predict_only(
    refer_folder: Callable[..., Any], arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLMM_DATA", str(refer_folder().root))
    result = run(["flmm_refcoco_val"], model_args=arguments, limit=1)
    assert (numbers(result, "flmm_refcoco_val")["items"], len(result["samples"]["flmm_refcoco_val"])) == (2, 1)
    only = run(["flmm_refcoco_val"], model_args=arguments, predict_only=True)
    assert [len(parse_masks_json(one["filtered_resps"][0]).masks) for one in only["samples"]["flmm_refcoco_val"]] == [
        2,
        1,
    ]
    assert not METRICS & set(numbers(only, "flmm_refcoco_val"))


def test_any_model_that_answers_with_masks_is_scored(
    refer_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for lmms-eval's sam3: reads ``image`` and ``expression``, answers with masks, boxes and scores."""
    from lmms_eval.api.model import lmms

    folder = refer_folder()
    monkeypatch.setenv("FLMM_DATA", str(folder.root))

    class Detector(lmms):
        is_simple = True

        def generate_until(self, requests: list[Any]) -> list[str]:
            replies = []
            for request in requests:
                doc = self.task_dict[request.args[4]][request.args[5]][request.args[3]]
                # The object is the lighter one; the last digit of its number is in the expression.
                number = int(next(char for char in doc["expression"] if char.isdigit()))
                green = np.asarray(doc["image"])[:, :, 1].astype(int)
                found = abs(green - (101 + number)) <= 12
                replies.append(json.dumps({"masks": [encode_rle(~found), encode_rle(found)], "scores": [0.1, 0.9]}))
            return replies

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            raise NotImplementedError

        def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
            raise NotImplementedError

    result = run(["flmm_refcoco_testA_per_sentence"], model=Detector())
    scored = numbers(result, "flmm_refcoco_testA_per_sentence")
    assert (scored["items"], scored["errors"]) == (2, 0)
    assert scored["cIoU"] > 90


def test_other_models_keep_the_captioning_groups() -> None:
    stock, ours = index_for("llava_hf").task_index, index_for("flmm_tiny").task_index
    for name in task_folder.OVERRIDDEN_NAMES:
        assert stock[name]["type"] == "tag"
        assert ours[name]["type"] == "group"
        assert Path(ours[name]["yaml_path"]).parent.parent == task_folder.TASKS_FOLDER
    assert {name for name in ours if name.startswith("flmm_")} == {name for name in stock if name.startswith("flmm_")}
    changed = {name for name in stock if stock[name] != ours[name]}
    assert changed == set(task_folder.OVERRIDDEN_NAMES)


def test_the_public_way_indexes_the_same_tasks() -> None:
    from lmms_eval.tasks import TaskManager

    public = TaskManager(include_path=str(task_folder.TASKS_FOLDER), include_defaults=False).task_index
    ours = index_for("flmm_tiny").task_index
    assert {name for name in ours if name.startswith("flmm_")} <= public.keys()
    assert all(public[name] == ours[name] for name in public)


def test_every_task_file_says_what_its_name_says() -> None:
    from lmms_eval import utils

    from flmm_plugin.datasets.refer import OFFICIAL_SIZES, SPLITTERS

    names = set()
    for path in sorted((task_folder.TASKS_FOLDER / "refcoco").glob("flmm_*.yaml")):
        config = utils.load_yaml_config(str(path), mode="full")
        data, split = config["dataset_kwargs"], config["test_split"]
        suffix = {"picture": "", "per_sentence": "_per_sentence"}[data["unit"]]
        assert path.stem == config["task"] == f"flmm_{data['name']}_{split}{suffix}"
        assert OFFICIAL_SIZES[data["name"], SPLITTERS[data["name"]][0]][split].sentences is not None
        assert tuple(entry["metric"] for entry in config["metric_list"]) == metric_names.REFCOCO
        assert config["generation_kwargs"]["flmm_ground"] is True
        names.add(config["task"])
    assert len(names) == 16
    for path in sorted((task_folder.TASKS_FOLDER / "refcoco").glob("_group_*.yaml")):
        group = utils.load_yaml_config(str(path), mode="simple")
        assert path.stem == f"_group_{group['group']}"
        assert set(group["task"]) <= names


def test_the_real_sample_ends_with_masks_of_the_pictures_sizes(
    real_refer: Path, arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLMM_DATA", str(real_refer))
    result = run(["flmm_refcocog_seg"], model_args=arguments, batch_size=2)
    for task, items in (("flmm_refcocog_val", 2), ("flmm_refcocog_test", 3)):
        scored = numbers(result, task)
        assert (scored["items"], scored["errors"], scored["complete"]) == (items, 0, 0)
        for sample in result["samples"][task]:
            size = Image.open(sample["doc"]["image_path"]).size
            assert {mask.shape[::-1] for mask in parse_masks_json(sample["filtered_resps"][0]).masks} == {size}


def command(folder: Path, arguments: str, out: Path, *launcher: str, tasks: str = "refcoco_seg") -> Any:
    scripts = Path(sys.executable).parent
    launched = [str(scripts / "accelerate"), "launch", *launcher, "-m", "lmms_eval"]
    program = launched if launcher else [str(scripts / "lmms_eval")]
    program += ["--model", "flmm_tiny", "--model_args", arguments, "--tasks", tasks, "--log_samples"]
    environment = {**os.environ, "FLMM_DATA": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    # With `--cpu`, accelerate starts one process whatever it is told; its launcher for several needs --multi_gpu.
    environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        [*program, "--output_path", str(out)],
        capture_output=True, text=True, timeout=900, env=environment, cwd=out.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    written = sorted(out.rglob("*_results.json"))
    assert len(written) == 1, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(written[0].read_text()), done.stdout + done.stderr


def replies(out: Path, task: str) -> dict[int, Any]:
    (path,) = out.rglob(f"*_samples_{task}.jsonl")
    return {one["doc_id"]: one["filtered_resps"] for one in map(json.loads, path.read_text().splitlines())}


@pytest.mark.slow
def test_two_ranks_give_the_result_of_one(refer_folder: Callable[..., Any], arguments: str, tmp_path: Path) -> None:
    folder = refer_folder()
    (folder.root / "coco/train2014/COCO_train2014_000000000012.jpg").write_bytes(b"no picture")
    tasks = "refcoco_seg,flmm_refcoco_val_per_sentence"
    alone, _ = command(folder.root, arguments, tmp_path / "one", tasks=tasks)
    both, text = command(
        folder.root, arguments, tmp_path / "two", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", tasks=tasks,
    )  # fmt: skip
    for task in ("flmm_refcoco_val", "flmm_refcoco_testA", "flmm_refcoco_val_per_sentence"):
        assert numbers(alone, task) == numbers(both, task)
        assert replies(tmp_path / "one", task) == replies(tmp_path / "two", task)
    assert numbers(both, "flmm_refcoco_val")["errors"] == 1
    assert "requests FAILED on rank 1" in text
