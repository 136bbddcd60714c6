"""The example of docs/own-task.md, installed as any package is, and used by everything that knows benchmarks."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from flmm_plugin.cli import main
from flmm_plugin.tasks import benchmarks as records
from flmm_plugin.tasks import task_files
from flmm_plugin.tasks.standalone import StandaloneTask
from flmm_plugin.tasks.task_files import is_ours

EXAMPLE = Path(__file__).parent / "example_benchmark"
GUIDE = Path(__file__).parents[2] / "docs" / "own-task.md"


def forget() -> None:
    """Forget what was found of installed packages."""
    for cached in (task_files.brought_packages, task_files._named, records.shipped):
        cached.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "flmm_signs"]:
        del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Path]:
    """The example as pip leaves it: its package, and its entry points beside it."""
    site = tmp_path / "site"
    shutil.copytree(EXAMPLE / "flmm_signs", site / "flmm_signs", ignore=shutil.ignore_patterns("__pycache__"))
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    facts = site / "flmm_signs-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    ]
    (facts / "entry_points.txt").write_text("\n".join(groups))
    yield site
    forget()


@pytest.fixture
def installed(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example on the path of this process, with two pictures under the data root."""
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("FLMM_DATA", str(tmp_path / "data"))
    folder = tmp_path / "data" / "signs"
    folder.mkdir(parents=True)
    signs = []
    for number in range(2):
        Image.new("RGB", (40, 30)).save(folder / f"{number}.png")
        square = [5, 5, 15, 5, 15, 15, 5, 15]
        signs.append({"file": f"{number}.png", "height": 30, "width": 40, "phrase": "the stop sign", "polygon": square})
    (folder / "test.json").write_text(json.dumps(signs))
    forget()
    return site


def test_a_package_of_others_brings_a_benchmark(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert records.benchmark_of("signs").title == "Street signs"
    assert main(["data", "check", "signs"]) == 0
    assert main(["list"]) == 0
    assert "flmm_signs" in capsys.readouterr().out
    assert records.headline("flmm_signs") == ("cIoU",)
    assert is_ours(installed / "flmm_signs" / "flmm_signs.yaml")
    task = StandaloneTask("flmm_signs")  # what VLMEvalKit's data set is made of
    numbers = task.numbers([task.score(doc, json.dumps({"masks": doc["masks"]})) for doc in task.docs])
    assert numbers == {"cIoU": 100.0, "mIoU": 100.0, "items": 2, "errors": 0, "complete": 1}


def test_lmms_eval_loads_its_task(installed: Path) -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.tasks import TaskManager

    from flmm_plugin.adapters.lmms_eval import task_folder

    task_folder.install()
    manager = TaskManager(verbosity="ERROR", include_defaults=False)
    task = manager.load_task_or_group(["flmm_signs"])["flmm_signs"]
    assert [doc["expressions"] for doc in task.docs] == [["the stop sign"]] * 2
    assert task.config.metadata["annotations"] == StandaloneTask("flmm_signs").annotations


@pytest.mark.parametrize("damage", ["gone", "raises"])
def test_a_broken_package_takes_nothing_with_it(
    installed: Path, damage: str, said: Callable[[], str], capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "gone":
        shutil.rmtree(installed / "flmm_signs")
    else:
        (installed / "flmm_signs" / "benchmark.py").write_text("import nothing_of_that_name\n")
    forget()
    assert "signs" not in records.benchmarks()
    assert "refcoco" in records.benchmarks()
    assert "flmm_signs" in said()
    assert main(["data", "check", "signs"]) == 2


@pytest.fixture
def said() -> Iterator[Callable[[], str]]:
    from loguru import logger

    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)))
    yield lambda: "".join(lines)
    logger.remove(sink)


def test_the_guide_shows_this_very_example() -> None:
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL))
    shown = {"toml": "pyproject.toml", "python": "flmm_signs/benchmark.py", "yaml": "flmm_signs/flmm_signs.yaml"}
    assert blocks == {language: (EXAMPLE / name).read_text(encoding="utf-8") for language, name in shown.items()}
    folder = {path.name for path in (EXAMPLE / "flmm_signs").iterdir() if path.is_file()}
    assert folder == {"__init__.py", "benchmark.py", "flmm_signs.yaml"}
