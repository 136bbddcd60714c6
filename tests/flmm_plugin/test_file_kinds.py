"""What lies there, in words."""

from __future__ import annotations

import importlib
import io
import tarfile
from pathlib import Path

import pytest

from flmm_plugin.errors import FlmmError
from flmm_plugin.file_kinds import kind_of, kind_of_bytes, strangers


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


def test_what_came_in_the_place_of_a_checkpoint_s_files_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert strangers(tmp_path) == strangers(tmp_path / "owner/name") == ""
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "tokenizer.json").write_text("")
    assert "model.safetensors is a Git LFS pointer" in strangers(tmp_path)
    assert "tokenizer.json is empty" in strangers(tmp_path)


PAGE = "<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>"


@pytest.mark.parametrize(
    ("module", "reader", "arguments"),
    [
        ("heads.weights", "read_safetensors", ()),
        ("heads.weights", "read_metadata", ()),
        ("heads.weights", "read_pth", ("released heads",)),
        ("datasets.json_files", "read_json", ()),
        ("datasets.safe_pickle", "load_data_pickle", ()),
        ("images", "open_image", ()),
        ("data.unpacking", "unpack", (Path("out"),)),
    ],
)
def test_every_reader_says_that_a_web_page_lies_there(
    tmp_path: Path, module: str, reader: str, arguments: tuple[object, ...]
) -> None:
    (tmp_path / "file").write_text(PAGE)
    read = getattr(importlib.import_module(f"flmm_plugin.{module}"), reader)
    with pytest.raises(FlmmError, match="web page titled 'Quota exceeded'"):
        read(tmp_path / "file", *arguments)
