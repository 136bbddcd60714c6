"""What a kill leaves of a file of records, and what is written behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_plugin import json_lines


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
