"""What a run needs is fetched once, whoever of several processes comes first."""

from __future__ import annotations

import multiprocessing
import time
from functools import partial
from pathlib import Path

import pytest

from flmm_plugin.adapters.answering.ready import get_ready, reads
from flmm_plugin.needs import Need, NotReady


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("FLMM_OFFLINE", raising=False)


def bring(file: Path) -> None:
    """Slowly, and with a line for every time."""
    with file.with_suffix(".log").open("a") as log:
        log.write("fetched\n")
    time.sleep(0.5)
    file.touch()


def needs(file: Path) -> list[Need]:
    return [Need("data", "a file", here=file.is_file(), command="get it", bring=partial(bring, file))]


def test_one_process_fetches_and_the_others_wait(tmp_path: Path) -> None:
    file = tmp_path / "file"
    work = partial(get_ready, partial(needs, file), fetch=True, folder=tmp_path)
    processes = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert file.is_file()
    assert file.with_suffix(".log").read_text() == "fetched\n"


def test_nothing_is_fetched_where_it_must_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    with pytest.raises(NotReady, match="get it"):
        get_ready(partial(needs, file), fetch=False, folder=tmp_path)
    monkeypatch.setenv("FLMM_OFFLINE", "1")
    with pytest.raises(NotReady, match="get it"):
        get_ready(partial(needs, file), fetch=True, folder=tmp_path)
    by_hand = Need("key", "a key", here=False, command="ask for it")
    monkeypatch.delenv("FLMM_OFFLINE")
    with pytest.raises(NotReady, match="ask for it"):
        get_ready(lambda: [*needs(file), by_hand], fetch=True, folder=tmp_path)
    assert not file.with_suffix(".log").exists()


def test_a_reader_has_the_last_word() -> None:
    assert not reads("flmm_gcg_test")
    assert reads("flmm_tiny_refcoco")
