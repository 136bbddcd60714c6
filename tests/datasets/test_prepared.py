"""Prepared annotations: the same items, from the official files whenever something changed."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmm_plugin.datasets import prepared
from flmm_plugin.datasets.prepared import items_of, writing
from flmm_plugin.datasets.problems import counted
from flmm_plugin.datasets.refer import ReferDataset


def test_prepared_items_are_the_same_and_the_official_files_are_not_read(
    refer_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = refer_folder()
    plain = ReferDataset(folder.root, "refcoco", "val")
    with writing() as written:
        ReferDataset(folder.root, "refcoco", "val")
    assert [path.name for path in written] == ["refcoco-unc-val.arrow"]
    monkeypatch.setattr(ReferDataset, "_read", _never)
    quick = ReferDataset(folder.root, "refcoco", "val")
    assert list(quick) == list(plain)
    assert quick.split_counts == plain.split_counts
    assert all((quick.rle(one) == plain.rle(two)) for one, two in zip(quick, plain, strict=True))


def _never(*_: Any) -> Any:
    raise AssertionError("the official files are read")


def test_sources_are_known_by_content_not_by_size_and_time(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    with writing():
        ReferDataset(folder.root, "refcoco", "val")
    instances = folder.root / "coco/refcoco/instances.json"
    state, content = instances.stat(), instances.read_text()
    instances.write_text(content.replace('"height": 60', '"height": 61'))
    os.utime(instances, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert instances.stat().st_size == state.st_size
    assert ReferDataset(folder.root, "refcoco", "val")[0].height == 61


def test_a_flipped_bit_anywhere_is_seen(refer_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = refer_folder()
    with writing() as written:
        ReferDataset(folder.root, "refcoco", "val")
    content = written[0].read_bytes()
    monkeypatch.setattr(ReferDataset, "_read", _never)
    ReferDataset(folder.root, "refcoco", "val")
    for place in range(0, len(content), max(1, len(content) // 60)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        written[0].write_bytes(flipped)
        with pytest.raises(AssertionError, match="official"):
            ReferDataset(folder.root, "refcoco", "val")


def test_another_reader_makes_its_own_items(refer_folder: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = refer_folder()
    with writing():
        ReferDataset(folder.root, "refcoco", "val")
    monkeypatch.setattr(prepared, "_readers", lambda: "of the next release")
    monkeypatch.setattr(ReferDataset, "_read", _never)
    with pytest.raises(AssertionError, match="official"):
        ReferDataset(folder.root, "refcoco", "val")


def test_a_changed_source_or_a_damaged_file_is_read_anew(refer_folder: Callable[..., Any]) -> None:
    folder = refer_folder()
    with writing() as written:
        ReferDataset(folder.root, "refcoco", "val")
    instances = folder.root / "coco/refcoco/instances.json"
    content = json.loads(instances.read_text())
    content["images"][0]["height"] = 61
    instances.write_text(json.dumps(content))
    assert ReferDataset(folder.root, "refcoco", "val")[0].height == 61
    with writing():
        ReferDataset(folder.root, "refcoco", "val")
    written[0].write_bytes(written[0].read_bytes()[:200])
    assert ReferDataset(folder.root, "refcoco", "val")[0].height == 61


@dataclasses.dataclass(frozen=True)
class Inner:
    text: str
    span: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Outer:
    number: int
    share: float
    yes: bool
    path: Path
    words: tuple[str, ...]
    maybe: tuple[float, float] | None
    inner: tuple[Inner, ...]
    free: Any


OUTER = st.builds(
    Outer,
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
    st.booleans(),
    st.just(Path("a/b.jpg")),
    st.lists(st.text(), max_size=2).map(tuple),
    st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.lists(st.builds(Inner, st.text(), st.tuples(st.integers(0, 9), st.integers(0, 9))), max_size=2).map(tuple),
    st.sampled_from([None, [[1.5, 2]], {"size": [1, 2], "counts": "x"}, "text"]),
)


@given(st.lists(OUTER, max_size=3))
def test_records_come_back_as_they_were(items: list[Outer]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        source = root / "source"
        source.write_text("official")
        placed = [dataclasses.replace(item, path=root / item.path) for item in items]
        with writing():
            items_of(root, "key", [source], Outer, lambda: (placed, {"n": 1}))
        again = items_of(root, "key", [source], Outer, lambda: ([], "built anew"))
    assert (list(again.items), again.extra) == (placed, {"n": 1})


def test_grand_f_and_reasonseg_are_prepared_too(tmp_path: Path) -> None:
    from flmm_plugin.datasets.grandf import GranDfDataset
    from flmm_plugin.datasets.reasonseg import ReasonSegDataset
    from flmm_plugin.tiny.layouts_gcg import write_grandf, write_reasonseg

    write_grandf(tmp_path, scenes=2, splits=("val",))
    write_reasonseg(tmp_path, scenes=2, splits=("val",))
    for dataset, file in ((GranDfDataset, "gcg-val"), (ReasonSegDataset, "reasonseg-val")):
        plain = list(dataset(tmp_path, "val"))
        with writing() as written:
            dataset(tmp_path, "val")
        assert [path.stem for path in written] == [file]
        assert list(dataset(tmp_path, "val")) == plain


def test_narratives_are_prepared_with_their_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flmm_plugin.datasets.png import PngDataset
    from flmm_plugin.tiny.layouts_png import write_png

    write_png(tmp_path, scenes=2)
    file = next(tmp_path.rglob("png_coco_val2017.json"))
    told = json.loads(file.read_text())
    file.write_text(json.dumps([*told, {"image_id": "1", "segments": []}]))
    plain = PngDataset(tmp_path)
    with writing() as written:
        PngDataset(tmp_path)
    assert [path.stem for path in written] == ["png-val"]
    monkeypatch.setattr(PngDataset, "_read", _never)
    quick = PngDataset(tmp_path)
    assert list(quick) == list(plain)
    assert quick.in_file == plain.in_file == len(told) + 1
    assert quick.problems == plain.problems
    assert "no phrase names a segment" in counted(quick.problems)
    assert [m.sum() for m in quick.masks(quick[0])] == [m.sum() for m in plain.masks(plain[0])]


def test_questions_are_prepared_and_their_pictures_still_looked_for(tmp_path: Path) -> None:
    from flmm_plugin.datasets.viscot import VisCotDataset
    from flmm_plugin.tiny.layouts_viscot import write_viscot

    write_viscot(tmp_path, scenes=2, names=("sroie",))
    plain = VisCotDataset(tmp_path, "sroie")
    with writing() as written:
        VisCotDataset(tmp_path, "sroie")
    assert [path.stem for path in written] == ["viscot-sroie"]
    assert list(VisCotDataset(tmp_path, "sroie")) == list(plain)
    first = plain[0].image_path
    renamed = first.rename(first.with_suffix(".png"))
    assert VisCotDataset(tmp_path, "sroie")[0].image_path == renamed
