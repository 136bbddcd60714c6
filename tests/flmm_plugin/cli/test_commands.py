"""The command itself, ``flmm list`` and ``flmm doctor``: no model is loaded here."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from flmm_plugin import __version__, tiny
from flmm_plugin.cli import build_parser, doctor, listing, main
from flmm_plugin.errors import DataNotFound, FlmmError

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("command", ["ground", "chat", "attention"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    assert exit_.value.code == 0
    assert f"example:\n  flmm {command} " in capsys.readouterr().out


def test_examples_of_the_main_help_parse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  flmm ")]
    shown = [shlex.split(re.split(r" {3,}", line)[0])[1:] for line in lines]
    assert {words[0] for words in shown} >= {"ground", "chat", "attention", "list", "doctor", "heads", "demo", "tiny"}
    for words in shown:
        if words != ["demo"]:  # parses its own arguments
            assert callable(build_parser(words[0]).parse_args(words).run)


def test_no_command_and_unknown_command_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["grund"]):
        with pytest.raises(SystemExit) as exit_:
            main(words)
        assert exit_.value.code == 2
    assert "grund" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"flmm-plugin {__version__}\n"


def test_errors_of_many_lines_become_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise FlmmError("first\n   second")

    monkeypatch.setattr(listing, "models", fail)
    assert main(["list"]) == 2
    assert capsys.readouterr().err == "flmm: FlmmError: first second\n"


def test_demo_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from flmm_plugin.adapters.lmms_eval import demo

    seen: list[list[str]] = []
    monkeypatch.setattr(demo, "main", lambda argv: seen.append(argv) or 1)
    assert main(["demo", "--out", "x", "--pictures", "3"]) == 1
    assert seen == [["--out", "x", "--pictures", "3"]]


# --- flmm tiny ------------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tiny, "_WEIGHTS", tmp_path)
    return tmp_path


def test_tiny_path(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "path"]) == 2
    assert "DataNotFound" in capsys.readouterr().err
    (weights / "lmm").mkdir()
    (weights / "lmm" / "config.json").write_text("{}")
    assert main(["tiny", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(weights / "lmm")


def test_tiny_commands_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["tiny", "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("path", "evaluate"))


@pytest.mark.parametrize("line", ["tiny train", "tiny train --out work --quick", "tiny sam --out work"])
def test_what_made_the_embedded_model_has_another_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert f"python -m tools.tiny {line.split()[1]}" in capsys.readouterr().err


# --- flmm list ------------------------------------------------------------------------------------------------------


def test_list_names_every_task_file_and_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {"flmm_tiny", "flmm_llava"} <= {model["name"] for model in content["models"]}
    assert "llava" in {family["name"] for family in content["families"]}
    listed = {task["name"] for task in content["tasks"]}
    assert {"refcoco_seg", "refcoco+_seg", "refcocog_seg", "flmm_refcoco_val", "flmm_refcoco+_testA"} <= listed
    files = {path.stem for path in (ROOT / "tasks").rglob("*.yaml")}
    assert {stem.removeprefix("_group_") for stem in files} <= listed
    assert main(["list"]) == 0
    assert "flmm_refcoco_val" in capsys.readouterr().out


def test_list_says_what_is_missing(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_DATA", str(tmp_path))
    needs = {task["name"]: task["needs"] for task in listing.tasks()}
    assert needs["flmm_refcoco_val"] == f"data: 0 of 3 parts of refcoco are under {tmp_path} (flmm data list refcoco)"
    assert needs["flmm_viscot"] == f"data: 0 of 11 parts of viscot are under {tmp_path} (flmm data list viscot)"
    assert needs["refcoco+_seg"].startswith("data: 0 of 3 parts of refcoco+ are")
    assert "of refcocog" in needs["flmm_res"]
    assert needs["flmm_all_tiny"].startswith("nothing")
    (tmp_path / "coco/refcoco").mkdir(parents=True)
    (tmp_path / "coco/train2014").mkdir()
    (tmp_path / "coco/refcoco/instances.json").write_text("{}")
    needs = {task["name"]: task["needs"] for task in listing.tasks()}
    assert needs["flmm_refcoco_val"].startswith("data: 2 of 3 parts of refcoco are")
    (tmp_path / "coco/refcoco/refs(unc).p").write_bytes(b"")
    needs = {task["name"]: task["needs"] for task in listing.tasks()}
    assert needs["flmm_refcoco_val"].startswith("nothing")
    assert needs["flmm_refcocog_val"].startswith("data: 1 of 3 parts of refcocog are")
    models = {model["name"]: model["needs"] for model in listing.models()}
    assert "lacks the embedded weights" in models["flmm_tiny"]
    assert "flmm heads list" in models["flmm_llava"]


def test_both_listings_count_the_same_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLMM_DATA", str(tmp_path))
    (tmp_path / "reason_seg/ReasonSeg/val").mkdir(parents=True)
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    needs = {task["name"]: task["needs"] for task in listing.tasks()}
    for benchmark, task in {"png": "flmm_png", "reasonseg": "flmm_reasonseg_val", "viscot": "flmm_viscot"}.items():
        count = re.search(rf"^  {benchmark} +(\d+ of \d+) parts", said, re.MULTILINE)
        assert count is not None
        assert f"data: {count[1]} parts of {benchmark} are under" in needs[task]


# --- flmm doctor ----------------------------------------------------------------------------------------------------


def test_tested_versions_are_those_of_the_constraints() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split()[0].split("==") for line in text.splitlines() if "==" in line and line[0] != "#")
    assert {name: pins[name] for name in doctor.TESTED} == doctor.TESTED


def test_versions_tell_tested_other_and_missing_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {**doctor.TESTED, "numpy": "9.9", "torch": doctor.TESTED["torch"] + "+cu130"}
    del here["pycocotools"]

    def version(name: str) -> str:
        if name not in here:
            raise doctor.metadata.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(doctor.metadata, "version", version)
    found = {name: (status, detail) for name, status, detail in doctor._versions()}
    assert found["torch"][0] == "ok"
    assert found["numpy"] == ("note", "9.9; tests ran with 2.4.6")
    assert found["pycocotools"][0] == "bad"
    assert "pip install pycocotools==" in found["pycocotools"][1]


def test_embedded_weights_are_missed_and_damage_is_seen(weights: Path) -> None:
    [(_, status, detail)] = doctor._weights()
    assert status == "bad"
    assert "reinstall" in detail
    (weights / "lmm").mkdir()
    (weights / "lmm" / "config.json").write_text("{}")
    (weights / "heads.safetensors").write_bytes(b"\x08")
    [(_, status, detail)] = doctor._weights()
    assert status == "bad"
    assert "truncated" in detail


def test_kernels_and_devices_of_this_machine() -> None:
    assert all(status != "bad" for _, status, _ in [*doctor._kernels(), *doctor._devices()])


def test_status_1_if_broken_0_if_not_and_a_check_that_raises_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fine() -> Iterator[doctor.Found]:
        yield "n", "ok", "d"

    def raises() -> Iterator[doctor.Found]:
        yield from ()
        raise DataNotFound("gone\naway")

    for check in ("_versions", "_devices", "_kernels", "_weights", "_lmms_eval"):
        monkeypatch.setattr(doctor, check, fine)
    assert main(["doctor"]) == 0
    assert "  ok    n: d" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "_lmms_eval", raises)
    assert main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    bad = [one for one in report if one["status"] == "bad"]
    assert [(one["topic"], one["detail"]) for one in bad] == [("lmms-eval", "DataNotFound: gone away")]
    assert any(one["topic"] == "verified" for one in report)
