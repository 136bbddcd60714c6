"""What a kill leaves of a file of records, and what is written behind it."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from flmm_plugin import json_lines
from flmm_plugin.errors import OutputFailed


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "records.jsonl"
    assert list(json_lines.read(path)) == []
    records = [{"text": "zwölf \u2028 \ud800"}, [1, None]]  # a line separator, and half of a surrogate pair
    json_lines.append(path, *records)
    json_lines.append(path, {"last": True})
    assert list(json_lines.read(path)) == [*records, {"last": True}]


@pytest.mark.parametrize("missing", [1, 2, 8, 12])
def test_half_a_line_costs_itself_alone(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "records.jsonl"
    json_lines.append(path, {"number": 1}, {"number": 2})
    path.write_bytes(path.read_bytes()[:-missing])
    kept = [1] if missing > 1 else [1, 2]  # of a whole line, the end alone may be gone
    assert [one["number"] for one in json_lines.read(path)] == kept
    json_lines.append(path, {"number": 3})
    assert [one["number"] for one in json_lines.read(path)] == [*kept, 3]


def test_bytes_that_are_no_text_cost_their_line(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'["\xff\xfe"]\n["whole"]\n')
    assert list(json_lines.read(path)) == [["whole"]]


@contextmanager
def no_file_grows_beyond(size: int) -> Iterator[None]:
    """As on a disk that is full at some byte: the system writes what fits, and says how much that was."""
    before, old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("torn", [False, True])
def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path, torn: bool) -> None:
    path = tmp_path / "records.jsonl"
    json_lines.append(path, {"number": 1})
    if torn:
        path.write_bytes(path.read_bytes() + b'{"numb')
    before = path.read_bytes()
    with no_file_grows_beyond(1000), pytest.raises(OutputFailed, match=r"records\.jsonl"):
        json_lines.append(path, {"number": 2}, {"text": "x" * 2000})
    assert path.read_bytes() == before
    json_lines.append(path, {"number": 3})
    assert [one["number"] for one in json_lines.read(path)] == [1, 3]


def test_a_full_disk_is_named() -> None:
    with pytest.raises(OutputFailed, match="full"):
        json_lines.append(Path("/dev/full"), {"number": 1})


def test_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: json_lines.append(path, {"number": number, "text": "x" * 5000}), range(64)))
    assert sorted(one["number"] for one in json_lines.read(path)) == list(range(64))


def test_a_line_that_is_nested_too_deeply_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"[" * 100_000 + b'\n["whole"]\n')
    assert list(json_lines.read(path)) == [["whole"]]
