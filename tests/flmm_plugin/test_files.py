"""Files appear whole or not at all, and a place that takes none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_plugin import files
from flmm_plugin.errors import BadAnnotation, OutputFailed


@pytest.mark.parametrize("content", ["text", b"bytes", ["two ", "parts"]])
def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path: Path, content: str | bytes) -> None:
    path = files.write(tmp_path / "new" / "file.txt", content)
    assert path.read_bytes() in (b"text", b"bytes", b"two parts")
    assert [one.name for one in path.parent.iterdir()] == ["file.txt"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = files.write(tmp_path / "file.txt", "old")

    def parts() -> object:
        yield "half of the new"
        raise ValueError("the rest cannot be made")

    with pytest.raises(ValueError, match="rest"):
        files.write(path, parts())  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["file.txt"]


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    path = files.write(tmp_path / "file.txt", "old")
    with pytest.raises(OutputFailed, match="full"), files.new_file(path):
        Path("/dev/full").write_bytes(b"more than it takes")
    assert path.read_text() == "old"


@pytest.mark.parametrize("make", [files.make_folder, lambda path: files.write(path / "x", ""), files.check_file_place])
def test_a_file_where_a_folder_should_be_is_named(tmp_path: Path, make: object) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputFailed, match="taken"):
        make(tmp_path / "taken" / "below")  # type: ignore[operator]


def test_a_folder_where_a_file_should_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputFailed, match="folder"):
        files.check_file_place(tmp_path)
    with pytest.raises(OutputFailed, match="folder"):
        files.write(tmp_path, "text")


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".file.txt.abc.part", "kept.part", ".hidden"):
        (tmp_path / name).write_text("")
    files.sweep(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".hidden", "kept.part"]


def test_a_device_is_written_and_not_replaced() -> None:
    files.check_file_place(Path("/dev/null"))
    files.write(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OutputFailed, match="/dev/full"):
        files.write(Path("/dev/full"), "text")
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe", b"[" * 100_000, b"1" + b"0" * 5000])
def test_what_is_no_json_is_named_with_the_error_asked_for(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "given.json"
    with pytest.raises(BadAnnotation, match=r"given\.json"):
        files.read_json(path, BadAnnotation)
    path.write_bytes(content)
    with pytest.raises(BadAnnotation, match=r"given\.json"):
        files.read_json(path, BadAnnotation)


def test_a_folder_is_held_by_one_and_let_go(tmp_path: Path) -> None:
    with files.held(tmp_path / "run"):
        (tmp_path / "run" / ".x.abc.part").write_text("of the holder")
        with pytest.raises(OutputFailed, match="another process"), files.held(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".x.abc.part").exists()
    with files.held(tmp_path / "run"):
        assert not (tmp_path / "run" / ".x.abc.part").exists()
