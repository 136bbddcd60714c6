"""Downloads from a server on this machine: resumed, verified, from mirrors, put where readers look."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.data.downloading import fetch, install, problem_of
from flmm_plugin.data.registry import Archive
from flmm_plugin.errors import BadAnnotation, DataNotFound

CONTENT = bytes(range(256)) * 40


class Files(ThreadingHTTPServer):
    """Serves ``files``; ``cut`` ends the first answers early, ``resumes`` says whether ranges are understood."""

    files: dict[str, bytes]
    asked: list[tuple[str, str]]
    cut: int
    resumes: bool


class Handler(BaseHTTPRequestHandler):
    server: Files

    def do_GET(self) -> None:
        name, wanted = self.path.lstrip("/"), self.headers.get("Range", "bytes=0-")
        self.server.asked.append((name, wanted))
        content = self.server.files.get(name)
        if content is None:
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if self.server.resumes else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if self.server.resumes else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.server.cut:
            body, self.server.cut = body[: self.server.cut], 0
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Files]:
    files = Files(("127.0.0.1", 0), Handler)
    files.files, files.asked, files.cut, files.resumes = {"data.bin": CONTENT}, [], 0, True
    thread = threading.Thread(target=files.serve_forever, daemon=True)
    thread.start()
    yield files
    files.shutdown()
    files.server_close()


def archive(server: Files, *names: str, **facts: Any) -> Archive:
    urls = tuple(f"http://127.0.0.1:{server.server_port}/{name}" for name in names or ("data.bin",))
    known = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    return Archive(urls, **{**known, **facts})


def test_a_file_is_fetched_once_and_verified(server: Files, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    path = fetch(archive(server), tmp_path, lambda *facts: told.append(facts))
    assert path.read_bytes() == CONTENT
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(archive(server), tmp_path) == path
    assert len(server.asked) == 1


@pytest.mark.parametrize("resumes", [True, False])
def test_a_broken_connection_is_resumed(server: Files, tmp_path: Path, resumes: bool) -> None:
    server.cut, server.resumes = 1000, resumes
    with pytest.raises(DataNotFound, match="run the same command again"):
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
    partial = tmp_path / ".flmm/downloads/data.bin.part"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"x" * (len(CONTENT) + 5))
    assert fetch(archive(server), tmp_path).read_bytes() == CONTENT


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
