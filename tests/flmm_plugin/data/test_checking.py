"""Is the data there and complete?"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.cli import main
from flmm_plugin.data.checking import check
from flmm_plugin.data.registry import Archive
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.tasks.benchmarks import benchmark_of, benchmarks


def bad(findings: Any) -> dict[str, str]:
    return {finding.what: finding.detail for finding in findings if finding.status == "bad"}


def test_every_missing_and_damaged_file_is_named(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    pictures = folder.root / "coco/train2014"
    whole = pictures / "COCO_train2014_000000000011.jpg"
    gone, cut = pictures / "COCO_train2014_000000000012.jpg", pictures / "COCO_train2014_000000000013.jpg"
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-20])
    found = bad(check(benchmark_of("refcoco"), folder.root))
    assert "missing" in found[f"picture {gone}"]
    assert "truncated" in found[f"picture {cut}"]
    assert f"picture {whole}" not in found
    assert "3 refs, the official split has 3811" in found["split val"]
    assert "0 refs" in found["split testB"]


def test_deep_looks_inside(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    path = folder.root / "coco/train2014/COCO_train2014_000000000011.jpg"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = b"\0" * (len(content) - len(content) // 2 - 2) + b"\xff\xd9"
    path.write_bytes(bytes(content[:20]) + b"\xff\xd9")  # both ends are there, nothing between
    assert f"picture {path}" not in bad(check(benchmark_of("refcoco"), folder.root))
    assert f"picture {path}" in bad(check(benchmark_of("refcoco"), folder.root, deep=True))


@pytest.mark.parametrize("damage", ["truncated", "gone", "empty"])
def test_damaged_annotations_are_named(refer_folder: Callable[..., Any], damage: str) -> None:
    folder = refer_folder()
    path = folder.root / "coco/refcoco/instances.json"
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    found = bad(check(benchmark_of("refcoco"), folder.root))
    assert {"truncated": "split val", "gone": "objects of RefCOCO", "empty": "objects of RefCOCO"}[damage] in found
    assert "split val" in found


def test_files_of_another_release_are_told_by_size_and_hash(tmp_path: Path) -> None:
    from flmm_plugin.tiny.layouts_viscot import write_viscot

    write_viscot(tmp_path, scenes=1, names=("sroie",))
    found = bad(check(benchmark_of("viscot"), tmp_path))
    assert "expected 583612" in found["Visual-CoT benchmark/sroie.json"]
    assert "flmm data download viscot" in found["Visual-CoT benchmark/docvqa.json"]
    assert "1 questions, the official split has 686" in found["split sroie"]
    assert "DataNotFound" in found["split docvqa"]


def test_the_registry_says_what_a_user_needs() -> None:
    for benchmark in benchmarks().values():
        assert benchmark.tasks
        for part in benchmark.parts:
            assert part.places
            assert part.licence
            assert part.source is not None or part.how, f"nobody could get {part.what}"
            if isinstance(part.source, Archive) and part.source.sha256 is not None:
                assert len(part.source.sha256) == 64
                assert part.source.size is None or part.source.size > 0
    with pytest.raises(UnknownArgument, match="did you mean 'refcocog'"):
        benchmark_of("RefCOCOg ")


def test_every_task_and_benchmark_of_the_registry_exists() -> None:
    from flmm_plugin.cli.listing import tasks
    from flmm_plugin.tasks.task_files import TASKS_FOLDER

    ours = {task["name"] for task in tasks()}
    for benchmark in benchmarks().values():
        missing = {name for name in benchmark.tasks if name.startswith("flmm_")} - ours
        assert not missing, f"{benchmark.name}: {missing} in {TASKS_FOLDER}"
        assert benchmark.splits


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_lists_checks_and_prepares(
    refer_folder: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(refer_folder().root)
    assert main(["data", "list", "--root", root]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in benchmarks())
    assert main(["data", "list", "refcoco", "--root", root]) == 0
    assert "have     pictures of COCO train2014" in capsys.readouterr().out
    assert main(["data", "list", "--json", "--root", root]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(benchmarks())
    assert main(["data", "check", "refcoco", "--root", root, "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"ok", "bad"} <= {finding["status"] for finding in findings}
    assert main(["data", "prepare", "refcoco", "--root", root]) == 0
    assert "refcoco-unc-testA.arrow" in capsys.readouterr().out
    assert main(["data", "prepare", "viscot", "--root", root]) == 1
    assert "skip  viscot docvqa" in capsys.readouterr().out


def test_a_dry_run_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "download", "png", "gcg", "--root", str(tmp_path), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"would get .*pictures of COCO val2017: http://images.cocodataset.org/", said)
    assert "panoptic maps" in said
    by_hand = re.search(r"(\d) must be got by hand", said)
    assert by_hand is not None
    assert said.count("by hand   ") == int(by_hand[1])
    assert list(tmp_path.iterdir()) == []
    assert main(["data", "check", "nothing", "--root", str(tmp_path)]) == 2


def test_the_documented_table_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "data.md"
    if not page.is_file():
        pytest.skip("needs the checkout's docs/data.md: run the tests from a checkout")
    assert main(["data", "list", "all", "--markdown"]) == 0
    table = capsys.readouterr().out.strip()
    text = page.read_text(encoding="utf-8")
    shown = text.partition("<!-- data:begin -->")[2].partition("<!-- data:end -->")[0].strip()
    assert shown == table, "run: flmm data list all --markdown, and put its table into docs/data.md"


@pytest.mark.parametrize("command", ["download", "prepare"])
def test_a_root_that_takes_no_files_is_named_before_anything_is_done(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["data", command, "refcoco", "--root", str(tmp_path / "file")]) == 2
    assert "OutputFailed" in capsys.readouterr().err


def test_one_command_takes_splits_tasks_and_recipes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin = ["data", "download", "--dry-run", "--root", str(tmp_path)]
    assert main([*begin, "refcoco", "refcocog", "--split", "testA,test"]) == 0
    assert "about 3350 pictures of COCO train2014" in capsys.readouterr().out
    assert main([*begin, "--tasks", "refcoco_seg", "--recipe", "flmm_llava"]) == 0
    assert "narratives of train2017" in capsys.readouterr().out
    assert main([*begin, "refcocog", "--split", "testA"]) == 2
    assert main([*begin, "--tasks", "refcoco_sag"]) == 2


def test_a_check_looks_at_the_parts_of_its_splits_alone(tmp_path: Path) -> None:
    assert not any("train2017" in finding.what for finding in check(benchmark_of("png"), tmp_path))
    assert "pictures of COCO train2017" in bad(check(benchmark_of("png"), tmp_path, ("train",)))
