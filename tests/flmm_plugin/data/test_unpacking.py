"""Archives of unknown origin."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from pathlib import Path
from random import Random

import pytest

from flmm_plugin import files
from flmm_plugin.data import unpacking
from flmm_plugin.data.unpacking import unpack
from flmm_plugin.errors import BadAnnotation, FlmmError, OutputFailed


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return path


def tarred(path: Path, *members: tarfile.TarInfo, content: bytes = b"x") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            if member.isfile():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def test_both_kinds_are_unpacked(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", top__one=b"1", two=b"22")
    assert unpack(archive, tmp_path / "zip") == 2
    assert (tmp_path / "zip/top/one").read_bytes() == b"1"
    assert (tmp_path / "zip/two").read_bytes() == b"22"
    other = tarred(tmp_path / "a.tar.gz", member("deep/er/file"), content=b"333")
    assert unpack(other, tmp_path / "tar") == 1
    assert (tmp_path / "tar/deep/er/file").read_bytes() == b"333"


def test_a_second_time_writes_only_what_is_missing(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", one=b"1", two=b"22", three=b"333")
    unpack(archive, tmp_path / "out")
    (tmp_path / "out/one").unlink()
    (tmp_path / "out/two").write_bytes(b"2")  # cut short by a crash of an earlier program
    assert unpack(archive, tmp_path / "out") == 2
    assert (tmp_path / "out/two").read_bytes() == b"22"


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/out", "..\\out", "C:\\out"])
def test_no_path_leaves_the_folder(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path / "a.zip", fine=b"1")
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(name, b"2")
    tar = tarred(tmp_path / "a.tar.gz", member("fine"), member(name))
    for one in (archive, tar):
        with pytest.raises(BadAnnotation, match="outside of"):
            unpack(one, tmp_path / "in")
    assert not (tmp_path / "in/fine").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tarred(tmp_path / "a.tar", member("door", kind, "/etc/passwd"), member("door/passwd"))
    with pytest.raises(BadAnnotation, match="neither"):
        unpack(archive, tmp_path / "in")
    info = zipfile.ZipInfo("door")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(info, "/etc")
    with pytest.raises(BadAnnotation, match="neither"):
        unpack(tmp_path / "a.zip", tmp_path / "in")
    assert not (tmp_path / "in/door").exists()


def test_a_link_that_is_there_already_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "in/door").symlink_to(tmp_path / "outside")
    with pytest.raises(BadAnnotation, match="outside of"):
        unpack(zipped(tmp_path / "a.zip", door__file=b"1"), tmp_path / "in")
    assert list((tmp_path / "outside").iterdir()) == []


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", one=b"1" * 1000)
    content = bytearray(archive.read_bytes())
    content[40] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(BadAnnotation, match="damaged"):
        unpack(archive, tmp_path / "in")
    assert not (tmp_path / "in/one").exists()
    (tmp_path / "b.zip").write_bytes(archive.read_bytes()[:50])
    with pytest.raises(BadAnnotation, match="no zip"):
        unpack(tmp_path / "b.zip", tmp_path / "in")


def test_flipped_bytes_are_named_or_harmless(tmp_path: Path) -> None:
    zip_bytes = zipped(tmp_path / "a.zip", one=b"1" * 300, two__three=bytes(range(256))).read_bytes()
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("one", bytes(range(256)))
    tar_bytes = tarred(tmp_path / "a.tar.gz", member("one"), content=bytes(range(256))).read_bytes()
    random = Random(0)
    for whole in (zip_bytes, (tmp_path / "x.zip").read_bytes(), tar_bytes):
        for trial in range(150):
            content = bytearray(whole)
            content[random.randrange(len(content))] = random.randrange(256)
            (tmp_path / "flipped").write_bytes(content)
            with contextlib.suppress(FlmmError):
                unpack(tmp_path / "flipped", tmp_path / f"out{trial % 7}")


@pytest.mark.parametrize("name", ["\0x", "a\0b", "", "a\nb"])
def test_names_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadAnnotation, match="named"):
        unpacking.safe_path(name, tmp_path, tmp_path / "a.zip")


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"mine")
    (tmp_path / "in/one.part").symlink_to(tmp_path / "elsewhere")
    unpack(zipped(tmp_path / "a.zip", one=b"1"), tmp_path / "in")
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"
    assert (tmp_path / "in/one").read_bytes() == b"1"


def test_what_a_wrong_file_is_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("<html><head><title>Quota exceeded</title></head></html>")
    with pytest.raises(BadAnnotation, match="Quota exceeded"):
        unpack(tmp_path / "a.zip", tmp_path / "in")


def test_an_archive_larger_than_the_disk_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "KEEP_FREE", 1 << 60)
    with pytest.raises(OutputFailed, match="free"):
        unpack(zipped(tmp_path / "a.zip", one=b"1"), tmp_path / "in")
    assert not (tmp_path / "in/one").exists()
