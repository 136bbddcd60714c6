"""What tasks need of their data, and what is fetched: annotations, then the pictures that the splits show."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.cli import main
from flmm_plugin.errors import DataNotFound
from flmm_plugin.needs import NotReady, missing, provide
from flmm_plugin.tasks.data_needs import data_needs
from flmm_plugin.tiny.layouts_gcg import write_reasonseg
from tests.loopback.conftest import published  # noqa: F401


@pytest.fixture
def world(loopback: Any, published: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    from tests.loopback.published import stock

    stock(loopback, published)
    loopback.here(monkeypatch)
    return loopback


def test_annotations_and_the_pictures_of_the_split_come(world: Any, tmp_path: Path) -> None:
    root = tmp_path / "root"
    annotations, pictures = data_needs(["flmm_refcoco_val"], root)
    assert not annotations.here
    assert "annotations of RefCOCO" in annotations.what
    assert "1500 pictures" in pictures.what  # the published number: nothing is here that says another
    with pytest.raises(NotReady, match="RefCOCO"):
        provide([annotations, pictures], fetch=False)
    assert world.proxy.answered == []

    provide([annotations, pictures], fetch=True)
    assert missing(data_needs(["flmm_refcoco_val"], root)) == []
    asked = [one.request.path for one in world.proxy.answered]
    assert [path for path in asked if "train2014" not in path] == ["/licheng/referit/data/refcoco.zip"]
    assert len(asked) == 3
    (need,) = missing(data_needs(["refcoco_seg", "mme"], root)) or [None]
    assert need is not None
    assert need.what == "2 pictures of COCO train2014"


def test_a_picture_that_does_not_come_is_named_and_the_others_stay(world: Any, tmp_path: Path) -> None:
    root = tmp_path / "root"
    world.break_("train2014/", status=404, times=1)
    with pytest.raises(DataNotFound, match="1 of 2 pictures"):
        provide(data_needs(["flmm_refcoco_val"], root), fetch=True)
    before = len(world.proxy.answered)
    provide(data_needs(["flmm_refcoco_val"], root), fetch=True)
    assert len(world.proxy.answered) == before + 1


def test_the_command_fetches_the_same(world: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "download", "refcoco", "--root", str(tmp_path / "root")]
    assert main([*words, "--split", "none"]) == 2
    assert main(words) == 0
    assert len(list((tmp_path / "root/coco/train2014").iterdir())) == 4
    assert main([*words, "--split", "train"]) == 0
    assert len(list((tmp_path / "root/coco/train2014").glob("*.jpg"))) == 5
    assert re.search(r"got .*annotations of RefCOCO", capsys.readouterr().out)


def test_archives_come_from_a_folder_of_the_drive_by_name(world: Any, tmp_path: Path) -> None:
    folder, file_id = "125mewyg5Ao6tZ3ZdJ-1-E3n04LGVELqy", "1-a-file-of-the-played-drive-0"
    write_reasonseg(tmp_path / "there", scenes=2, splits=("test",))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted((tmp_path / "there").rglob("*.*")):
            opened.write(path, f"test/{path.name}")
    world.drive.files |= {file_id: ("test.zip", archive.getvalue()), file_id + "1": ("train.zip", b"others")}
    world.drive.folders[folder] = (file_id + "1",)

    root = tmp_path / "root"
    with pytest.raises(DataNotFound, match=r"no test\.zip"):
        provide(data_needs(["flmm_reasonseg_test"], root), fetch=True)
    world.drive.folders[folder] = (file_id + "1", file_id)
    provide(data_needs(["flmm_reasonseg_test"], root), fetch=True)
    assert missing(data_needs(["flmm_reasonseg_test"], root)) == []
    assert (root / "ReasonSeg/test").is_dir()
    assert not [one for one in world.proxy.answered if f"{file_id}1" in one.request.address]
