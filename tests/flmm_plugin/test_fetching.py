"""Files from the played Google Drive; those of plain servers are in ``data/test_downloading.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.errors import BadAnnotation, DataNotFound
from flmm_plugin.fetching import WebFile, fetch, page_of

CONTENT = bytes(range(256)) * 8000
ID = "1UXcjJrrpTm1bNphvPNjvol9gUfvzNbjA"
HEADS = WebFile((f"https://drive.google.com/uc?id={ID}",), "heads.pth")


@pytest.fixture
def world(loopback: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    loopback.drive.files[ID] = ("as-it-is-there.pth", CONTENT)
    loopback.here(monkeypatch)
    return loopback


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.endswith(".lock")]


def test_a_file_comes_from_the_drive_once(world: Any, store: Path) -> None:
    assert fetch(HEADS, store).read_bytes() == CONTENT
    asked = len(world.proxy.answered)
    assert fetch(HEADS, store).name == "heads.pth"
    assert len(world.proxy.answered) == asked
    assert names(store) == ["heads.pth"]


def test_a_quota_page_is_called_what_it_is(world: Any, store: Path) -> None:
    world.drive.quota.add(ID)
    with pytest.raises(DataNotFound, match="Too many users") as refused:
        fetch(HEADS, store)
    assert page_of(HEADS.urls[0]) in str(refused.value)
    world.drive.quota.clear()
    assert fetch(HEADS, store).read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_from_the_drive_goes_on(world: Any, store: Path, ranges: bool) -> None:
    world.break_("confirm=t", cut=1_200_000, times=1)
    with pytest.raises(DataNotFound, match="same command"):
        fetch(HEADS, store)
    if not ranges:
        world.break_("confirm=t", ranges=False)
    assert fetch(HEADS, store).read_bytes() == CONTENT
    last = world.proxy.answered[-1]
    assert last.status == (206 if ranges else 200)
    assert names(store) == ["heads.pth"]


def test_another_file_on_the_drive_is_deleted(world: Any, store: Path) -> None:
    with pytest.raises(BadAnnotation, match="expected"):
        fetch(WebFile(HEADS.urls, HEADS.name, sha256="ab"), store)
    with pytest.raises(BadAnnotation, match="not this"):
        fetch(HEADS, store, lambda _: "not this")
    assert names(store) == []


def test_what_is_not_on_the_drive(world: Any, store: Path) -> None:
    with pytest.raises(DataNotFound, match="page in place of the file"):
        fetch(WebFile(("https://drive.google.com/uc?id=1none",), "heads.pth"), store)
