"""What a run needs: one screen where something is missing, and nothing half fetched."""

from __future__ import annotations

import logging
import multiprocessing
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from flmm_plugin import files
from flmm_plugin.errors import DataNotFound, OutputFailed
from flmm_plugin.exit_codes import named
from flmm_plugin.needs import Need, NotReady, listing, missing, offline, provide, size_text


@pytest.fixture(autouse=True)
def _online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    for name in ("FLMM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def needs(brought: list[str]) -> list[Need]:
    return [
        Need("model", "owner/model", here=True),
        Need(
            "sam", "SAM vit_l", here=False, size=1_200_000_000, source="https://example.org/sam", licence="Apache-2.0",
            command="flmm heads get-sam vit_l", bring=lambda: brought.append("sam"),
        ),
        Need(
            "data", "pictures", here=False, command="flmm data download a", bring=lambda: brought.append("data"),
            users=("a", "b", "c", "d"),
        ),
    ]  # fmt: skip


def test_everything_missing_is_brought_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    brought: list[str] = []
    with caplog.at_level(logging.WARNING):
        provide(needs(brought), fetch=True)
    assert brought == ["sam", "data"]
    assert "1.2 GB and parts of unknown size" in caplog.text
    assert "https://example.org/sam; licence: Apache-2.0" in caplog.text


def test_what_is_here_is_not_brought(tmp_path: Path) -> None:
    provide([Need("model", "owner/model", here=True)], fetch=False)
    assert not (tmp_path / "cache").exists()
    assert missing(needs([]))[0].what == "SAM vit_l"


@pytest.mark.parametrize("variable", ["FLMM_OFFLINE", "HF_HUB_OFFLINE", None])
def test_where_nothing_may_be_fetched_one_screen_lists_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    assert offline() == (variable is not None)
    brought: list[str] = []
    with pytest.raises(NotReady, match="switched off") as caught:
        provide(needs(brought), fetch=variable is not None)
    assert brought == []
    first, *screen, last = str(caught.value).splitlines()
    assert "model" not in "".join(screen)
    assert screen == listing(missing(needs([]))).splitlines()
    assert "same command" in last
    assert all(len(line) <= 100 for line in (first, *screen, last))


def test_nothing_is_fetched_where_one_part_can_only_be_had_by_hand(tmp_path: Path) -> None:
    brought: list[str] = []
    form = Need("data", "answers", here=False, command="fill in the form at https://data.example")
    with pytest.raises(NotReady, match="form") as caught:
        provide([*needs(brought), form], fetch=True)
    assert brought == []
    assert "switched off" not in str(caught.value)


def test_a_disk_without_room_for_all_of_it_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "KEEP_FREE", 1 << 60)
    brought: list[str] = []
    with pytest.raises(OutputFailed, match="free"):
        provide(needs(brought), fetch=True)
    assert brought == []


def test_each_disk_must_have_room_for_what_goes_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(files, "check_room", lambda folder, size: asked.append((folder, size)))
    here = tmp_path / "not/there/yet"
    one = Need("data", "a", here=False, size=5, space=7, folder=here, bring=lambda: None)
    other = Need("data", "b", here=False, size=2, folder=Path("/proc"), bring=lambda: None)
    provide([one, other, replace(one, what="c")], fetch=True)
    assert asked == [(tmp_path, 7), (Path("/proc"), 2), (tmp_path, 14)]


def test_a_failure_names_the_server_and_lists_what_is_still_missing() -> None:
    def refuse() -> None:
        raise DataNotFound("HTTP Error 503")

    brought: list[str] = []
    model, sam, data = needs(brought)
    with pytest.raises(DataNotFound, match="503") as caught:
        provide([model, data, replace(sam, bring=refuse)], fetch=True)
    assert brought == ["data"]
    first, *screen = named(caught.value).splitlines()
    assert first == "DataNotFound: HTTP Error 503"
    assert "example.org" in screen[0]
    assert screen[1:-1] == listing([sam]).splitlines()


def test_what_fetches_may_ask_for_more() -> None:
    """Heads are made of a SAM, which asks for itself while they are being fetched."""
    brought: list[str] = []
    _, sam, data = needs(brought)
    provide([replace(data, bring=lambda: provide([sam], fetch=True))], fetch=True)
    assert brought == ["sam"]


def bring(file: Path) -> None:
    """Slowly, and with a line for every time."""
    with file.with_suffix(".log").open("a") as log:
        log.write("fetched\n")
    time.sleep(0.5)
    file.touch()


def slow_needs(file: Path) -> list[Need]:
    return [Need("data", "a file", here=file.is_file(), command="get it", bring=partial(bring, file))]


def provide_slowly(file: Path) -> None:
    provide(slow_needs(file), fetch=True, again=partial(slow_needs, file))


def test_one_process_fetches_and_the_others_wait(tmp_path: Path) -> None:
    file = tmp_path / "file"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=provide_slowly, args=(file,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert file.with_suffix(".log").read_text() == "fetched\n"


def test_a_listing_has_one_column_each_and_the_command_below() -> None:
    lines = listing(missing(needs([]))).splitlines()
    assert lines[0].split() == ["sam", "SAM", "vit_l", "1.2", "GB"]
    assert lines[1].strip() == "flmm heads get-sam vit_l"
    assert "for a, b, c and 1 more" in lines[2]
    assert lines[0].index("GB") == lines[2].index("GB")
    assert listing([]) == ""


def test_sizes_have_one_unit() -> None:
    assert [size_text(size) for size in (999, 2_500_000, 19_300_000_000, None)] == ["1 kB", "2 MB", "19.3 GB", "? GB"]
