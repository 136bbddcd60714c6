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

from flmm_plugin.errors import BadCache
from flmm_plugin.training import store as store_module
from flmm_plugin.training.store import DiskCap, ShardStore, size_text

IDENTITY = {"model": "one", "capture": 1}


def store(root: Path, identity: dict[str, Any] | None = None, **options: Any) -> ShardStore:
    return ShardStore(root, "words", identity or IDENTITY, **{"shard_bytes": 1000, **options})


def record(number: int, size: int = 300) -> bytes:
    return bytes([number % 251]) * size


def files(root: Path, pattern: str = "*.safetensors") -> list[Path]:
    return sorted(root.glob(f"words-*/{pattern}"))


def test_records_come_back_from_memory_from_disk_and_in_another_process_s_store(tmp_path: Path) -> None:
    first = store(tmp_path)
    for number in range(10):
        assert first.put(f"a{number}", record(number))
    assert first.get("a9") == record(9)
    first.flush()
    second = store(tmp_path)
    assert len(second) == 10
    assert [second.get(f"a{number}") for number in range(10)] == [record(number) for number in range(10)]
    assert second.get("b") is None
    assert len(files(tmp_path)) == 3  # four records are over 1000 bytes; two are left for the last shard


def test_a_shard_is_written_when_its_first_record_has_waited(tmp_path: Path) -> None:
    one = store(tmp_path, shard_seconds=0.0)
    one.put("a", record(1))
    assert len(files(tmp_path)) == 1


def test_what_others_write_is_seen_after_a_refresh(tmp_path: Path) -> None:
    reader, writer = store(tmp_path), store(tmp_path)
    writer.put("a", record(1))
    writer.flush()
    assert reader.get("a") is None
    reader.refresh()
    assert reader.get("a") == record(1)


def test_another_identity_is_another_folder(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path, {**IDENTITY, "capture": 2})
    first.put("a", record(1))
    first.flush()
    second.refresh()
    assert first.folder != second.folder
    assert "a" not in second
    assert '"capture": 1' in (first.folder / "identity.json").read_text()


def test_a_damaged_identity_file_is_written_anew(tmp_path: Path) -> None:
    first = store(tmp_path)
    first.put("a", record(1))
    first.flush()
    good = (first.folder / "identity.json").read_text()
    (first.folder / "identity.json").write_text(good[:7])
    assert store(tmp_path).get("a") == record(1)
    assert (first.folder / "identity.json").read_text() == good


def test_a_truncated_shard_is_named_and_removed_and_its_records_can_be_written_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = store(tmp_path)
    for number in range(8):
        first.put(f"a{number}", record(number))
    first.flush()
    broken = files(tmp_path)[0]
    broken.write_bytes(broken.read_bytes()[:-100])
    again = store(tmp_path)
    assert len(again) == 4
    assert broken.name in caplog.text
    assert not broken.exists()
    for number in range(8):
        again.put(f"a{number}", record(number))
    again.flush()
    assert [store(tmp_path).get(f"a{number}") for number in range(8)] == [record(number) for number in range(8)]


def test_a_shard_that_breaks_while_it_is_in_use_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = store(tmp_path)
    one.put("a", record(1))
    one.flush()
    [shard] = files(tmp_path)
    shard.write_bytes(b"nothing")
    assert one.get("a") is None
    assert "a" not in one
    assert f"{shard.name} was damaged" in caplog.text


def test_the_good_records_of_a_shard_with_a_bad_one_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = store(tmp_path)
    for number in range(3):
        one.put(f"a{number}", record(number))
    one.flush()
    [shard] = files(tmp_path)
    one.damaged("a1", "a wrong checksum")
    assert shard.name in caplog.text
    assert "2 other records are kept" in caplog.text
    for again in (one, store(tmp_path)):
        assert [again.get(f"a{number}") for number in range(3)] == [record(0), None, record(2)]


def test_a_file_that_cannot_be_opened_is_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store(tmp_path)
    one.put("a", record(1))
    one.flush()

    def crowded(*args: Any, **options: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(store_module, "safe_open", crowded)
    with pytest.raises(BadCache, match="Too many open files"):
        one.get("a")
    with pytest.raises(BadCache, match="Too many open files"):
        store(tmp_path)
    assert len(files(tmp_path)) == 1


def test_a_shard_of_another_model_is_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = store(tmp_path, {"model": "other"})
    other.put("a", record(1))
    other.flush()
    mine = store(tmp_path)
    [foreign] = other.folder.glob("*.safetensors")
    (mine.folder / foreign.name).write_bytes(foreign.read_bytes())
    assert "a" not in store(tmp_path)
    assert foreign.name in caplog.text
    assert "another model" in caplog.text


def test_a_record_written_twice_harms_nothing(tmp_path: Path) -> None:
    first, second = store(tmp_path), store(tmp_path)
    for one in (first, second):
        one.put("a", record(1))
        one.flush()
    assert len(files(tmp_path)) == 2
    assert store(tmp_path).get("a") == record(1)


def test_the_cap_is_never_exceeded_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cap = DiskCap(tmp_path, 6000)
    one = store(tmp_path, cap=cap)
    kept = [one.put(f"a{number}", record(number)) for number in range(40)]
    one.flush()
    assert kept[0]
    assert not kept[-1]
    assert cap.full
    assert 3000 < cap.used() <= 6000
    assert caplog.text.count("the cap of 6.0 kB") == 1
    again = store(tmp_path, cap=cap)
    assert 3 <= len(again) < 40
    assert all(again.get(f"a{number}") == record(number) for number in range(len(again)))


def test_a_full_disk_is_said_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = store(tmp_path)
    one.put("a", record(1))
    one.flush()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.files, "flush", full)
    one.put("b", record(2))
    one.flush()
    assert one.cap.full
    assert one.get("a") == record(1)
    assert "b" not in one
    assert "is full" in caplog.text
    assert not files(tmp_path, "*.part")


def test_half_a_shard_of_a_killed_writer_is_swept_away(tmp_path: Path) -> None:
    one = store(tmp_path)
    part = one.folder / "dead.safetensors.part"
    part.write_bytes(b"half")
    store(tmp_path)
    assert not part.exists()


def test_threads_of_one_process_lose_nothing(tmp_path: Path) -> None:
    """A trainer reads ahead in a thread while its checkpoint flushes the cache."""
    one = store(tmp_path)

    def work(first: int) -> None:
        for number in range(first, first + 30):
            one.put(f"a{number}", record(number))
            one.flush()

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(work, (0, 30, 60)))
    found = store(tmp_path)
    assert [found.get(f"a{number}") for number in range(90)] == [record(number) for number in range(90)]


def test_a_forked_worker_does_not_write_its_parents_records(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.put("a", record(1))
    worker = multiprocessing.get_context("fork").Process(target=one.flush, daemon=True)
    worker.start()
    worker.join()
    assert not files(tmp_path)
    one.flush()
    assert len(files(tmp_path)) == 1


def writer(root: Path, first: int, count: int, slow: float = 0.0) -> Any:
    """A process of its own that writes records; forked, since a fresh interpreter would import for seconds."""

    def write() -> None:
        one = store(root)
        for number in range(first, first + count):
            one.put(f"a{number}", record(number))
            time.sleep(slow)
        one.flush()

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
    assert all(found.get(f"a{number}") == record(number) for number in range(180))


def test_a_killed_writer_leaves_whole_shards_and_the_next_one_goes_on(tmp_path: Path) -> None:
    running = writer(tmp_path, 0, 500, 0.002)
    while len(files(tmp_path)) < 3:
        time.sleep(0.005)
    os.kill(running.pid, signal.SIGKILL)
    running.join(60)
    assert running.exitcode == -signal.SIGKILL
    found = store(tmp_path)
    assert 12 <= len(found) < 500
    assert all(found.get(f"a{number}") == record(number) for number in range(len(found)))
    for number in range(500):
        found.put(f"a{number}", record(number))
    found.flush()
    assert len(store(tmp_path)) == 500


def test_sizes_are_said_in_units() -> None:
    assert [size_text(size) for size in (0, 999, 1500, 2.5e6, 3e9, 1.84e12)] == [
        "0 B", "999 B", "1.5 kB", "2.5 MB", "3.0 GB", "1.8 TB",
    ]  # fmt: skip


def test_an_old_folder_is_looked_at_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store(tmp_path)
    one.put("a", record(1))
    one.flush()
    one.refresh()
    looked: list[str] = []
    monkeypatch.setattr(store_module.os, "scandir", lambda path: looked.append(path) or iter(()))
    one.refresh()
    assert not looked
    os.utime(one.folder, ns=(time.time_ns(), time.time_ns()))
    one.refresh()
    assert looked


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
        after.flush()

    worker = multiprocessing.get_context("fork").Process(target=write, daemon=True)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    before.refresh()
    assert before.get("a") == record(1)
