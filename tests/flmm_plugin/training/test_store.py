"""A store of bytes that processes write at once, that is killed, damaged, capped and mixed up."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_plugin.errors import BadCache
from flmm_plugin.training import store as store_module
from flmm_plugin.training.store import DiskCap, RecordStore, pack, size_text

IDENTITY = {"model": "one", "capture": 1}


def store(root: Path, identity: dict[str, Any] | None = None, **options: Any) -> RecordStore:
    return RecordStore(root, "words", identity or IDENTITY, **options)


def record(number: int) -> bytes:
    """About 500 bytes that no compression makes smaller."""
    noise = torch.randint(0, 256, (300,), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return pack({"noise": noise}, {"number": number})


def number_at(one: RecordStore, address: str) -> int | None:
    found = one.get(address)
    return None if found is None else int(found[1]["number"])


def numbers(one: RecordStore, count: int) -> list[int | None]:
    return [number_at(one, f"a{number}") for number in range(count)]


def files(root: Path, pattern: str = "*.features") -> list[Path]:
    return sorted(root.glob(f"words-*/{pattern}"))


def test_records_come_back_from_disk_and_in_another_process_s_store(tmp_path: Path) -> None:
    first = store(tmp_path)
    for number in range(10):
        assert first.put(f"a{number}", record(number))
    assert number_at(first, "a9") == 9
    second = store(tmp_path)
    assert len(second) == 10
    assert numbers(second, 10) == list(range(10))
    assert second.get("b") is None
    assert len(files(tmp_path)) == 10


def test_what_others_write_is_seen(tmp_path: Path) -> None:
    reader, writer = store(tmp_path), store(tmp_path)
    assert reader.get("a") is None
    writer.put("a", record(1))
    assert number_at(reader, "a") == 1


def test_another_identity_is_another_folder(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path, {**IDENTITY, "capture": 2})
    first.put("a", record(1))
    assert first.folder != second.folder
    assert "a" not in second
    assert '"capture": 1' in (first.folder / "identity.json").read_text()


def test_a_damaged_identity_file_is_written_anew(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put("a", record(1))
    good = (first.folder / "identity.json").read_text()
    (first.folder / "identity.json").write_text(good[:7])
    assert number_at(store(tmp_path), "a") == 1
    assert (first.folder / "identity.json").read_text() == good


@pytest.mark.parametrize("content", [b"", b"nothing"])
def test_a_damaged_record_is_named_and_removed_and_the_others_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    one = store(tmp_path)
    for number in range(3):
        one.put(f"a{number}", record(number))
    broken = files(tmp_path)[1]
    broken.write_bytes(content or broken.read_bytes()[:-100])
    assert one.get("a1") is None
    assert "a1" not in one
    assert f"{broken.name} was damaged" in caplog.text
    assert not broken.exists()
    for again in (one, store(tmp_path)):
        assert numbers(again, 3) == [0, None, 2]
    one.put("a1", record(1))
    assert numbers(store(tmp_path), 3) == [0, 1, 2]


def test_a_file_that_cannot_be_opened_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store(tmp_path)
    one.put("a", record(1))

    def crowded(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "read_bytes", crowded)
    with pytest.raises(BadCache, match="Too many open files"):
        one.get("a")
    assert len(files(tmp_path)) == 1


def test_a_record_of_another_model_is_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = store(tmp_path, {"model": "other"})
    other.put("a", record(1))
    mine = store(tmp_path)
    [foreign] = other.folder.glob("*.features")
    (mine.folder / foreign.name).write_bytes(foreign.read_bytes())
    assert store(tmp_path).get("a") is None
    assert "a" not in mine
    assert foreign.name in caplog.text
    assert "another model" in caplog.text


def test_a_record_written_twice_harms_nothing(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    for one in (first, second):
        one.put("a", record(1))
    assert len(files(tmp_path)) == 1
    assert number_at(store(tmp_path), "a") == 1


def test_the_cap_is_never_exceeded_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cap = DiskCap(tmp_path, 6000)
    one = store(tmp_path, cap=cap)
    kept = [one.put(f"a{number}", record(number)) for number in range(40)]
    assert kept[0]
    assert not kept[-1]
    assert cap.full
    assert 3000 < cap.used() <= 6000
    assert caplog.text.count("the cap of 6.0 kB") == 1
    again = store(tmp_path, cap=cap)
    assert 3 <= len(again) < 40
    assert numbers(again, len(again)) == list(range(len(again)))
    again.put("b", record(50))  # nothing is counted from the start when a cache is opened anew
    assert cap.used() <= 6000


def test_a_full_disk_is_said_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = store(tmp_path)
    one.put("a", record(1))

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.files, "flush", full)
    assert not one.put("b", record(2))
    assert one.cap.full
    assert number_at(one, "a") == 1
    assert "b" not in one
    assert "is full" in caplog.text
    assert not files(tmp_path, ".*.part")


def test_half_a_record_of_a_killed_writer_is_swept_away(tmp_path: Path) -> None:
    one = store(tmp_path)
    part = one.folder / ".dead.features.x.part"
    part.write_bytes(b"half")
    store(tmp_path)
    assert not part.exists()


def test_threads_of_one_process_lose_nothing(tmp_path: Path) -> None:
    one = store(tmp_path)

    def work(first: int) -> None:
        for number in range(first, first + 30):
            one.put(f"a{number}", record(number))

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, (0, 30, 60)))
    found = store(tmp_path)
    assert numbers(found, 90) == list(range(90))


def writer(root: Path, first: int, count: int, slow: float = 0.0) -> Any:
    """A process of its own that writes records; forked, since a fresh interpreter would import for seconds."""

    def write() -> None:
        one = store(root)
        for number in range(first, first + count):
            one.put(f"a{number}", record(number))
            time.sleep(slow)

    process = multiprocessing.get_context("fork").Process(target=write, daemon=True)
    process.start()
    return process


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Their records overlap."""
    running = [writer(tmp_path, 0, 120), writer(tmp_path, 60, 120)]
    for one in running:
        one.join(60)
        assert one.exitcode == 0
    found = store(tmp_path)
    assert len(found) == 180
    assert numbers(found, 180) == list(range(180))


def test_a_killed_writer_leaves_whole_records_and_the_next_one_goes_on(tmp_path: Path) -> None:
    running = writer(tmp_path, 0, 500, 0.002)
    while len(files(tmp_path)) < 3:
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.join(60)
    assert running.exitcode == -signal.SIGKILL
    found = store(tmp_path)
    assert 3 <= len(found) < 500
    assert numbers(found, len(found)) == list(range(len(found)))
    for number in range(500):
        found.put(f"a{number}", record(number))
    assert len(store(tmp_path)) == 500


def test_sizes_are_said_in_units() -> None:
    assert [size_text(size) for size in (0, 999, 1500, 2.5e6, 3e9, 1.84e12)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 GB", "1.8 TB",
    ]  # fmt: skip


def test_a_forked_process_writes_where_lmms_eval_shares_its_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator = pytest.importorskip("lmms_eval.evaluator")
    from filelock._api import FileLockMeta

    monkeypatch.setattr(FileLockMeta, "__call__", FileLockMeta.__call__)  # what comes next is undone
    monkeypatch.setattr(evaluator._enable_reentrant_filelocks, "_patched", False, raising=False)
    evaluator._enable_reentrant_filelocks()
    before = store(tmp_path)

    def write() -> None:
        after = store(tmp_path)
        after.put("a", record(1))

    worker = multiprocessing.get_context("fork").Process(target=write, daemon=True)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert number_at(before, "a") == 1
