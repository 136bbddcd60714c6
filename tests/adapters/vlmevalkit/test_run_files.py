"""Answers on disk one by one."""

from __future__ import annotations

from pathlib import Path

from flmm_plugin.adapters.vlmevalkit.run_files import Journal


def test_answers_are_found_again_by_the_same_model_only(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "0of1_D.jsonl"
    first = Journal(path, "a")
    assert first.get("x") is None
    first.add("x", 'tab\there, "quotes"\nand lines')
    first.add("y", "")
    again = Journal(path, "a")
    assert (again.get("x"), again.get("y"), again.get("z")) == ('tab\there, "quotes"\nand lines', "", None)
    assert (again.found, again.added, first.added) == (2, 0, 2)
    assert Journal(path, "b").get("x") is None


def test_a_line_that_a_kill_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path, "a")
    journal.add("x", "1")
    journal.add("y", "2")
    path.write_bytes(path.read_bytes()[:-5])
    resumed = Journal(path, "a")
    assert (resumed.get("x"), resumed.get("y")) == ("1", None)
    resumed.add("y", "3")
    resumed.add("z", "4")
    whole = Journal(path, "a")
    assert [whole.get(key) for key in "xyz"] == ["1", "3", "4"]


def test_what_another_number_of_processes_left_is_read(tmp_path: Path) -> None:
    paths = [tmp_path / f"{rank}of2.jsonl" for rank in range(2)]
    for rank, path in enumerate(paths):
        Journal(path, "a").add(str(rank), "answer")
    one = Journal(tmp_path / "0of1.jsonl", "a", paths)
    assert (one.get("0"), one.get("1")) == ("answer", "answer")
