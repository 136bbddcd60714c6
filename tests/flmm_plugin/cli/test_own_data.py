"""``flmm data add`` and what follows from it: listings, tasks of both harnesses, samples to learn from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from flmm_plugin.cli import main
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.records import decode_rle
from flmm_plugin.tasks.benchmarks import benchmarks, headline
from flmm_plugin.tasks.data_needs import data_needs
from flmm_plugin.tasks.rescoring import Options, rescore
from flmm_plugin.tasks.sample_log import DocumentScores
from flmm_plugin.tasks.split_sizes import samples_of
from flmm_plugin.tasks.standalone import StandaloneTask
from flmm_plugin.tasks.task_files import task_config, task_files
from flmm_plugin.training.recipe import TrainRecipe
from flmm_plugin.training.samples import TrainingSet

Said = pytest.CaptureFixture[str]


def square(left: int) -> list[list[int]]:
    return [[left, 2, left + 6, 2, left + 6, 8, left, 8]]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A COCO file of two pictures: one object, two objects, and nothing."""
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos.v2").mkdir()  # a folder whose name looks like a file's
    for number in (1, 2):
        Image.new("RGB", (30, 20)).save(tmp_path / "photos.v2" / f"{number}.png")
    images = [{"id": number, "file_name": f"{number}.png", "height": 20, "width": 30} for number in (1, 2)]
    said = [(1, "the dog", square(2)), (1, "both cats", square(2)), (1, "both cats", square(20)), (2, "a bird", [])]
    annotations = [
        {"id": number, "image_id": image, "phrase": words, "segmentation": shape}
        for number, (image, words, shape) in enumerate(said)
    ]
    path = tmp_path / "refs.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


@pytest.fixture
def add(mine: Path) -> Callable[..., int]:
    return lambda *words: main(["data", "add", "mine", str(mine), "--images", str(mine.parent / "photos.v2"), *words])


def test_what_is_added_is_listed_checked_and_forgotten(add: Callable[..., int], capsys: Said) -> None:
    assert add() == 0
    said = capsys.readouterr().out
    assert "3 phrases about 2 pictures: 1 mean one object, 1 several, 1 nothing" in said
    assert "no odd entry" in said
    assert "flmm_own_mine" in said
    assert "OWN_mine" in said
    assert main(["data", "list"]) == 0
    assert "2 of 2 parts" in next(line for line in capsys.readouterr().out.splitlines() if " mine " in line)
    assert main(["data", "check", "mine"]) == 0
    assert main(["data", "prepare", "mine"]) == 0
    assert data_needs(["flmm_own_mine"])
    assert all(need.here for need in data_needs(["flmm_own_mine"]))
    assert headline("flmm_own_mine") == ("gIoU",)
    capsys.readouterr()
    assert main(["data", "remove", "mine"]) == 0
    assert "flmm_own_mine" not in task_files()
    assert "mine" not in benchmarks()
    assert main(["data", "remove", "mine"]) == 2


def test_every_odd_entry_and_picture_is_printed(mine: Path, add: Callable[..., int], capsys: Said) -> None:
    content = json.loads(mine.read_text())
    content["images"] += [{"id": 9, "file_name": "gone.png", "height": 20, "width": 30}]
    content["images"][1]["height"] = 25
    content["annotations"] += [{"id": n, "image_id": 7, "phrase": "x", "segmentation": []} for n in range(50, 60)]
    content["annotations"] += [{"id": 70, "image_id": 9, "phrase": "x", "segmentation": []}]
    mine.write_text(json.dumps(content))
    assert add() == 0
    said = capsys.readouterr().out
    assert said.count("image_id is of no picture") == 10
    assert "2.png: 20 x 30 pixels" in said
    assert "gone.png: missing" in said
    assert "10 of them left out" in said
    assert main(["data", "check", "mine"]) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "add", "png", "{file}", "--images", "{photos}"], "name of a benchmark"),
        (["data", "add", "mine", "{file}", "--images", "nowhere"], "no folder nowhere"),
        (["data", "add", "mine", "nowhere.json", "--images", "{photos}"], "no file"),
        (["data", "add", "a b", "{file}", "--images", "{photos}"], "letters"),
        (["data", "add", "mine", "{photos}/1.png", "--images", "{photos}"], "1.png"),
        (["data", "check", "mime"], "mime"),
    ],
)
def test_what_cannot_be_added_is_refused(mine: Path, words: list[str], said: str, capsys: Said) -> None:
    filled = [word.format(file=mine, photos=mine.parent / "photos.v2") for word in words]
    assert main(filled) == 2
    assert said in capsys.readouterr().err
    assert not list((mine.parent / "cache").rglob("*.json"))


def test_a_file_without_a_usable_phrase_is_not_added(mine: Path, add: Callable[..., int], capsys: Said) -> None:
    mine.write_text('{"images": [], "annotations": [{"id": 1, "image_id": 1}]}')
    assert add() == 2
    assert "image_id is of no picture" in capsys.readouterr().err
    assert "mine" not in benchmarks()


def test_the_task_reads_scores_and_carries_its_hash(mine: Path, add: Callable[..., int], tmp_path: Path) -> None:
    assert add() == 0
    assert add("--split", "val") == 0
    assert benchmarks()["mine"].kit == {"OWN_mine": {"test": "flmm_own_mine", "val": "flmm_own_mine_val"}}
    task = StandaloneTask("flmm_own_mine_val")
    assert task.docs.digest in task.annotations
    first, second = task.docs
    assert first["expressions"] == ["the dog", "both cats"]
    assert (second["expressions"], second["ann_ids"]) == (["a bird"], [[]])
    assert int(decode_rle(first["masks"][1]).sum()) == 72
    replies = [json.dumps({"masks": doc["masks"]}) for doc in (first, second)]
    records = [task.score(doc, reply) for doc, reply in zip(task.docs, replies, strict=True)]
    assert task.numbers(records) | {"errors": 0} == {
        **dict.fromkeys(("gIoU", "cIoU", "N_acc", "T_acc", "P@0.5", "P@0.7", "P@0.8", "P@0.9"), 100.0),
        "items": 3, "errors": 0, "complete": 1,
    }  # fmt: skip
    lines = [
        {"doc_id": at, "filtered_resps": [reply], "target": "", **DocumentScores(record)}
        for at, (reply, record) in enumerate(zip(replies, records, strict=True))
    ]
    log = tmp_path / "1_samples_flmm_own_mine_val.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = rescore(log, options=Options(resamples=0))
    assert {one.metric: one.value for one in again.scores}["N_acc"] == 100


def test_lmms_eval_finds_the_task_and_prints_the_same(add: Callable[..., int]) -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.tasks import TaskManager

    from flmm_plugin.adapters.lmms_eval import task_folder
    from flmm_plugin.adapters.lmms_eval.preflight import leaves
    from flmm_plugin.tasks.file_task import FileTask

    assert add() == 0
    task_folder.install()
    manager = TaskManager(verbosity="ERROR", include_defaults=False)
    found = dict(leaves(manager, ["flmm_own_mine"]))["flmm_own_mine"]
    assert found[0] == "own"
    config = {**task_config("flmm_own_mine")}
    theirs = manager.load_task_or_group(["flmm_own_mine"])["flmm_own_mine"]
    assert isinstance(theirs, FileTask)
    assert theirs.config.metadata["annotations"] == StandaloneTask("flmm_own_mine").annotations
    assert config["dataset_kwargs"] == {"name": "mine"}
    replies = [json.dumps({"masks": doc["masks"][:1]}) for doc in theirs.docs]
    records = [theirs.process_results(doc, [reply]) for doc, reply in zip(theirs.docs, replies, strict=True)]
    printed = {
        metric: aggregate([record[metric] for record in records]) for metric, aggregate in theirs.aggregation().items()
    }
    ours = StandaloneTask("flmm_own_mine")  # what VLMEvalKit's data set is made of
    numbers = ours.numbers([ours.score(doc, reply) for doc, reply in zip(ours.docs, replies, strict=True)])
    assert numbers == printed
    assert numbers["errors"] == 1


def test_a_recipe_learns_from_it(mine: Path, add: Callable[..., int]) -> None:
    part = {"dataset": "mine", "split": "train"}
    with pytest.raises(UnknownArgument, match="mine"):
        TrainRecipe.from_dict({"data": {"parts": [part]}})
    assert add("--split", "train") == 0
    recipe = TrainRecipe.from_dict({"data": {"root": "flmm_tiny_train", "parts": [part]}})
    samples = TrainingSet(recipe)
    assert [sample.phrases for sample in samples] == [("the dog", "both cats")]  # nothing to learn of an absent thing
    assert [int(mask.sum()) for mask in samples[0].masks()] == [36, 72]
    assert samples[0].image_loader().size == (30, 20)
    assert list(samples.digests) == ["mine/train"]
    assert samples_of("mine", "train") == 1
    with pytest.raises(UnknownArgument, match="--split val"):
        TrainingSet(TrainRecipe.from_dict({"data": {"parts": [{**part, "split": "val"}]}}))
