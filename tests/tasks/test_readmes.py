"""Every task folder says the same things about itself, in the same places."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_plugin.tasks.task_files import TASKS_FOLDER

FOLDERS = sorted({path.parent for path in TASKS_FOLDER.glob("*/*.yaml")})
ROWS = ("Paper", "Files", "Split sizes", "Unit of evaluation", "Prompt", "Metrics")
SECTIONS = ("## Which number is which", "## Checked against", "## Deviations")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_task_folder_has_a_readme_of_the_one_form(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    for row in ROWS:
        cells = [line.split("|")[2].strip() for line in lines if line.startswith(f"| {row}")]
        assert any(cells), f"{folder.name}: no row says its {row.lower()}"
    places = [lines.index(section) for section in SECTIONS]
    assert places == sorted(places)
    for place in places:
        assert lines[place + 1] == ""
        assert lines[place + 2].strip(), f"{folder.name}: nothing stands under {lines[place]!r}"


def test_every_folder_of_tasks_is_looked_at() -> None:
    assert {folder.name for folder in FOLDERS} >= {
        "refcoco", "png", "gcg", "reasonseg", "viscot", "pope_viscot", "keywords", "qa", "tiny",
    }  # fmt: skip
