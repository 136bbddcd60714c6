"""One record per benchmark: what it names exists, and the tasks read their documents where it stands."""

from __future__ import annotations

import importlib

import pytest

from flmm_plugin.tasks.benchmarks import benchmarks, benchmarks_of_folder
from flmm_plugin.tasks.task_files import TASKS_FOLDER, group_files, task_config, task_files


def test_every_folder_with_a_record_is_found() -> None:
    folders = {path.parent.name for path in TASKS_FOLDER.glob("*/benchmark.py")}
    assert folders == {
        "refcoco",
        "png",
        "gcg",
        "reasonseg",
        "viscot",
        "pope_viscot",
        "qa",
        "grefcoco",
        "refcoco_m",
        "own",
    }
    assert list(benchmarks()) == [
        "refcoco", "refcoco+", "refcocog", "png", "reasonseg", "gcg", "viscot", "pope", "mme", "grefcoco", "refcoco-m",
    ]  # fmt: skip


@pytest.mark.parametrize("name", list(benchmarks()))
def test_the_tasks_that_a_record_names_exist(name: str) -> None:
    record = benchmarks()[name]
    known = {*task_files(), *group_files()}
    assert {task for task in record.tasks if task.startswith("flmm_")} <= known
    assert {task for tasks in record.kit.values() for task in tasks.values()} <= set(task_files())
    assert set(record.folders) <= {path.parent.name for path in task_files().values()}


@pytest.mark.parametrize("task", [name for name in task_files() if "dataset_path" not in task_config(name)])
def test_every_task_on_files_has_its_reader_beside_its_prompt(task: str) -> None:
    reader = importlib.import_module(task_config(task)["doc_to_text"].rpartition(".")[0])
    assert callable(reader.read_documents)
    assert set(task_config(task).get("dataset_kwargs", {})) <= set(reader.SETTINGS)


def test_a_task_of_refcoco_reads_the_data_set_in_its_name() -> None:
    def read(task: str) -> list[str]:
        return [one.name for one in benchmarks_of_folder("refcoco", [task])]

    assert read("flmm_refcoco_val") == ["refcoco"]
    assert read("flmm_refcoco+_testA_per_sentence") == ["refcoco+"]
    assert read("refcocog_seg") == ["refcocog"]
    assert read("flmm_res") == ["refcoco", "refcoco+", "refcocog"]
    assert benchmarks_of_folder("nothing") == []
