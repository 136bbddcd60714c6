"""What lies there, in words."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from flmm_plugin.file_kinds import kind_of, kind_of_bytes


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf<!doctype HTML><title>Log\n in</title>", "web page titled 'Log in'"),
        (b"<?xml version='1.0'?>\n<html></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"PK\x03\x04", "zip"),
        (b"\0" * 100, "zero bytes"),
        (b'{"a": 1}', "text that begins"),
        (b"\x80\x02}q\x00.", "binary"),
        ("ä".encode() * 2048 + b"\xc3", "text"),
    ],
)
def test_bytes_are_described(content: bytes, word: str) -> None:
    assert word in kind_of_bytes(content)


def test_paths_are_described(tmp_path: Path) -> None:
    assert kind_of(tmp_path) == "a folder"
    assert kind_of(tmp_path / "gone") == "not there"
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    assert kind_of(tmp_path / "a.tar") == "a tar archive"
