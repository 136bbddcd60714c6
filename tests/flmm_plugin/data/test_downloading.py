"""Downloads from a server on this machine: resumed, verified, from mirrors, put where readers look."""

from __future__ import annotations

import hashlib
import io
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from flmm_plugin import fetching, files
from flmm_plugin.data.downloading import install
from flmm_plugin.data.registry import Archive
from flmm_plugin.data.unpacking import problem_of_archive
from flmm_plugin.errors import BadAnnotation, DataNotFound, OutputFailed
from flmm_plugin.fetching import problem_of

CONTENT = bytes(range(256)) * 40


class Files(ThreadingHTTPServer):
    """Serves ``files``; ``cut`` ends the first answers early, ``resumes`` says whether ranges are understood.

    ``tags`` holds the ETag of each file that has one; ``says_length`` whether answers state their length.
    """

    files: dict[str, bytes]
    tags: dict[str, str]
    asked: list[tuple[str, str]]
    cut: int
    resumes: bool
    says_length: bool
    slow: float


class Handler(BaseHTTPRequestHandler):
    server: Files

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range", "bytes=0-")
        self.server.asked.append((name, wanted))
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        tag = self.server.tags.get(name)
        resumes = self.server.resumes and self.headers.get("If-Range") in (None, tag)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if resumes else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if resumes else 200)
        if self.server.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        time.sleep(self.server.slow)
        body = content[start:]
        if self.server.cut:
            body, self.server.cut = body[: self.server.cut], 0
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Files]:
    files = Files(("127.0.0.1", 0), Handler)
    files.files, files.tags, files.asked = {"data.bin": CONTENT}, {}, []
    files.cut, files.resumes, files.says_length, files.slow = 0, True, True, 0.0
    thread = threading.Thread(target=files.serve_forever, daemon=True)
    thread.start()
    yield files
    files.shutdown()
    files.server_close()


def archive(server: Files, *names: str, **facts: Any) -> Archive:
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{name}" for name in names or ("data.bin",))
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return Archive(urls, **{**known, **facts})


def fetch(source: Archive, root: Path) -> Path:
    """Fetch as `install` does."""
    return fetching.fetch(source.web, root / ".flmm/downloads", None if source.sha256 else problem_of_archive)


def test_a_file_is_fetched_once_and_verified(server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    def bar(**options: Any) -> Any:
        bars.append(tqdm(**{**options, "disable": False}))
        return bars[-1]

    monkeypatch.setattr(fetching, "tqdm", bar)
    path = fetch(archive(server), tmp_path)
    assert path.read_bytes() == CONTENT
    assert [(one.n, one.total) for one in bars] == [(len(CONTENT), len(CONTENT))]
    assert fetch(archive(server), tmp_path) == path
    assert len(server.asked) == 1


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_connection_is_resumed(server: Files, tmp_path: Path, resumes: bool) -> None:
    server.cut, server.resumes = 1000, resumes
    with pytest.raises(DataNotFound, match="same command"):
        fetch(archive(server), tmp_path)
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert server.asked[1] == ("data.bin", "bytes=1000-")


def test_mirrors_are_tried_in_order(server: Files, tmp_path: Path) -> None:
    assert fetch(archive(server, "gone.bin", "data.bin"), tmp_path).name == "gone.bin"
    assert [name for name, _ in server.asked] == ["gone.bin", "data.bin"]
    with pytest.raises(DataNotFound, match=r"404.*404"):
        fetch(archive(server, "gone2.bin", "gone3.bin"), tmp_path)


@pytest.mark.parametrize("facts", [{"sha256": "0" * 64}, {"size": len(CONTENT) + 1, "sha256": None}])
def test_another_file_than_the_official_one_is_not_kept(server: Files, tmp_path: Path, facts: Any) -> None:
    with pytest.raises((BadAnnotation, DataNotFound), match=r"expected|ended after"):
        fetch(archive(server, **facts), tmp_path)
    assert not (tmp_path / ".flmm/downloads/data.bin").exists()


def test_a_larger_rest_of_another_file_is_thrown_away(server: Files, tmp_path: Path) -> None:
    partial = rest_of(archive(server), tmp_path)
    partial.write_bytes(b"x" * (len(CONTENT) + 5))
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


def rest_of(source: Archive, root: Path) -> Path:
    """Where the rest of an interrupted download from the first address lies."""
    folder = root / ".flmm/downloads"
    folder.mkdir(parents=True, exist_ok=True)
    return fetching._partial_file(folder / source.web.name, source.urls[0])


def zipped(**members: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return made.getvalue()


LOGIN = b"<!DOCTYPE html><html><head><title>Sign in - Drive</title></head><body>quota</body></html>"
WHOLE = zipped(a=b"1" * 5000, b=bytes(range(256)) * 20)
FLIPPED = WHOLE[:2000] + bytes([WHOLE[2000] ^ 1]) + WHOLE[2001:]


@pytest.mark.parametrize("bad", [LOGIN, FLIPPED, WHOLE[:3000], b""], ids=["login", "flipped", "cut", "empty"])
def test_an_archive_without_a_hash_is_tested_before_it_gets_its_name(server: Files, tmp_path: Path, bad: bytes) -> None:
    server.says_length = False
    server.files.update({"first.zip": bad, "second.zip": WHOLE})
    alone = archive(server, "first.zip", size=None, sha256=None)
    with pytest.raises(BadAnnotation, match="Sign in" if bad is LOGIN else "damaged|no zip"):
        fetch(alone, tmp_path)
    kept = [path.name for path in (tmp_path / ".flmm/downloads").iterdir() if not path.name.endswith(".lock")]
    assert kept == []
    path = fetch(archive(server, "first.zip", "second.zip", size=None, sha256=None), tmp_path)
    assert path.read_bytes() == WHOLE


def test_a_damaged_download_of_an_earlier_version_is_fetched_again(server: Files, tmp_path: Path) -> None:
    server.files["a.zip"] = WHOLE
    source = archive(server, "a.zip", size=None, sha256=None)
    fetch(source, tmp_path).write_bytes(LOGIN)
    assert fetch(source, tmp_path).read_bytes() == WHOLE


def test_a_rest_of_another_version_is_not_gone_on_with(server: Files, tmp_path: Path) -> None:
    source = archive(server, "a.zip", size=None, sha256=None)
    server.files["a.zip"], server.tags["a.zip"], server.cut = zipped(a=b"0" * 5000), '"old"', 3000
    with pytest.raises(DataNotFound, match="ended"):
        fetch(source, tmp_path)
    server.files["a.zip"], server.tags["a.zip"], server.cut = WHOLE, '"new"', 2000
    with pytest.raises(DataNotFound, match="ended"):
        fetch(source, tmp_path)
    assert fetch(source, tmp_path).read_bytes() == WHOLE
    assert [wanted for _, wanted in server.asked] == ["bytes=0-", "bytes=3000-", "bytes=2000-"]


def test_a_rest_without_a_version_begins_anew_unless_a_hash_guards_it(server: Files, tmp_path: Path) -> None:
    server.files["a.zip"] = WHOLE
    source = archive(server, "a.zip", size=None, sha256=None)
    rest_of(source, tmp_path).write_bytes(b"stale")
    assert fetch(source, tmp_path).read_bytes() == WHOLE
    guarded = archive(server)
    rest_of(guarded, tmp_path).write_bytes(b"stale")
    assert fetch(guarded, tmp_path).read_bytes() == CONTENT


def test_a_link_in_the_way_is_not_written_through(server: Files, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    rest_of(archive(server), tmp_path).symlink_to(tmp_path / "elsewhere")
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


def test_two_downloads_at_once_are_one(server: Files, tmp_path: Path) -> None:
    server.slow = 0.3
    found: list[str] = []
    source = archive(server, file="place/data.bin")
    threads = [threading.Thread(target=lambda: found.append(install(source, tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [str(tmp_path / "place/data.bin")] * 3
    assert len(server.asked) == 1


def test_a_root_that_cannot_be_written_is_named(server: Files, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file")
    with pytest.raises(OutputFailed, match="root"):
        install(archive(server), tmp_path / "root")
    assert server.asked == []


def test_a_disk_without_room_is_named_before_the_download(
    server: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "KEEP_FREE", 1 << 60)
    with pytest.raises(OutputFailed, match="free"):
        fetch(archive(server), tmp_path)


def test_files_go_to_their_place_and_archives_are_unpacked(server: Files, tmp_path: Path) -> None:
    install(archive(server, file="viscot/data.bin"), tmp_path)
    assert (tmp_path / "viscot/data.bin").read_bytes() == CONTENT
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as opened:
        opened.writestr("maps/a.png", b"map")
    with zipfile.ZipFile(outer, "w") as opened:
        opened.writestr("annotations/maps.zip", inner.getvalue())
    server.files["outer.zip"] = outer.getvalue()
    source = archive(server, "outer.zip", size=None, sha256=None, into="coco")
    source = Archive(source.urls, into="coco", inner={"annotations/maps.zip": "coco/annotations"})
    install(source, tmp_path)
    assert (tmp_path / "coco/annotations/maps/a.png").read_bytes() == b"map"


def test_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    assert problem_of(path, None, None) is None
    assert problem_of(path, 3, None) == f"{len(CONTENT)} bytes, expected 3"
    assert "sha256" in str(problem_of(path, len(CONTENT), "ab" * 32))
