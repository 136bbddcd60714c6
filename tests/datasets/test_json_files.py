"""Annotation files damaged in every way that was thought of: each has a name, none ends a run with a bare error."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.data.own import OwnSplit
from flmm_plugin.datasets.grandf import GranDfDataset
from flmm_plugin.datasets.gref import GrefDataset
from flmm_plugin.datasets.json_files import parsed_json, read_json
from flmm_plugin.datasets.own import OwnDataset
from flmm_plugin.datasets.png import PngDataset
from flmm_plugin.datasets.reasonseg import ReasonSegDataset
from flmm_plugin.datasets.refer import ReferDataset
from flmm_plugin.datasets.viscot import VisCotDataset
from flmm_plugin.errors import BadAnnotation, FlmmError
from flmm_plugin.tiny.layouts import write_refer
from flmm_plugin.tiny.layouts_gcg import write_grandf, write_reasonseg
from flmm_plugin.tiny.layouts_gref import write_gref
from flmm_plugin.tiny.layouts_png import write_png
from flmm_plugin.tiny.layouts_viscot import write_viscot

SPOILT: tuple[Any, ...] = (None, True, "x", "\ud800", -1, 5, 1e300, float("inf"), float("nan"), [], {}, [[1]])


@pytest.mark.parametrize(
    ("raw", "fallback", "said"),
    [
        (b'{"a": 1', None, "truncated or not JSON"),
        (b"", None, "truncated or not JSON"),
        (b"[" * 100_000, None, "truncated or not JSON"),
        ('{"a": "ä"}'.encode("cp1252"), None, "x.json is not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), None, "x.json is not UTF-8"),
        (b'{"a": "\x81\xff"}', "cp1252", "neither UTF-8 nor cp1252"),
    ],
)
def test_every_damage_has_a_name_and_a_fix(raw: bytes, fallback: str | None, said: str) -> None:
    with pytest.raises(BadAnnotation, match=f"{said}.*fetch the file again"):
        parsed_json(raw, "x.json", fallback)


def test_marks_and_old_encodings_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + '{"a": "ä"}'.encode())
    assert read_json(path) == {"a": "ä"}
    path.write_bytes('{"a": "ä"}'.encode("cp1252"))
    assert read_json(path, fallback="cp1252") == {"a": "ä"}


def read_all(dataset: Any) -> None:
    """What a run reads: every item, its targets, and what is said about the whole."""
    for item in dataset:
        if isinstance(dataset, ReferDataset):
            dataset.rle(item)
        elif isinstance(dataset, PngDataset):
            dataset.masks(item)
        elif isinstance(dataset, GrefDataset | OwnDataset):
            item.rle()
        elif isinstance(dataset, ReasonSegDataset):
            item.masks()
    assert len(dataset.digest) == 64


OWN = {
    "images": [{"id": 1, "file_name": "1.jpg", "height": 20, "width": 30}],
    "annotations": [
        {"id": 1, "image_id": 1, "phrase": "a dog", "segmentation": [[2, 2, 8, 2, 8, 8]], "bbox": [2, 2, 6, 6]}
    ],
}

#: What writes a world in the official layout, what reads it, and its annotation files.
READERS: Sequence[tuple[str, Callable[[Path], Any], Callable[[Path], Any], tuple[str, ...]]] = (
    (
        "refer",
        lambda root: write_refer(root, scenes=1, names=("refcoco",)),
        lambda root: ReferDataset(root, "refcoco", "val"),
        ("coco/refcoco/instances.json", "coco/refcoco/refs(unc).p"),
    ),
    (
        "png",
        lambda root: write_png(root, scenes=1),
        lambda root: PngDataset(root, "val"),
        ("coco/annotations/png_coco_val2017.json", "coco/annotations/panoptic_val2017.json"),
    ),
    (
        "grandf",
        lambda root: write_grandf(root, scenes=1, splits=("val",)),
        lambda root: GranDfDataset(root, "val"),
        tuple(f"GranDf/annotations/val_test/val_gcg_coco_{kind}_gt.json" for kind in ("caption", "mask")),
    ),
    (
        "reasonseg",
        lambda root: write_reasonseg(root, scenes=1, splits=("val",)),
        lambda root: ReasonSegDataset(root, "val"),
        ("ReasonSeg/val/*.json",),
    ),
    (
        "gref",
        lambda root: write_gref(root, scenes=1),
        lambda root: GrefDataset(root, "val"),
        ("coco/grefcoco/instances.json", "coco/grefcoco/grefs(unc).json"),
    ),
    (
        "own",
        lambda root: (root / "refs.json").write_text(json.dumps(OWN)),
        lambda root: OwnDataset("mine", "test", OwnSplit(root / "refs.json", root)),
        ("refs.json",),
    ),
    (
        "viscot",
        lambda root: write_viscot(root, scenes=1, names=("sroie",)),
        lambda root: VisCotDataset(root, "sroie"),
        ("viscot/benchmark/sroie.json", "viscot/benchmark_det/sroie.jsonl"),
    ),
)


def damaged(raw: bytes) -> Iterator[bytes]:
    """A file cut, converted, replaced by something else, and with each of its fields spoilt or gone."""
    yield from (raw[:length] for length in (0, 1, len(raw) // 2, len(raw) - 3))
    rng = np.random.default_rng(len(raw))
    for _ in range(25):
        changed = np.frombuffer(raw, dtype=np.uint8).copy()
        changed[rng.integers(0, len(raw), 3)] = rng.integers(0, 256, 3)
        yield changed.tobytes()
    yield raw.decode("latin-1").encode("utf-16")
    yield raw.replace(b"a", b"\xe9", 2)
    yield from (b"null", b"3", b'"text"', b"[]", b"[3]", b"{}", b"[" * 100_000, b"\0" * 9)
    try:
        content = json.loads(raw)
    except ValueError:  # a pickle
        return
    for place in places(content):
        for value in SPOILT:
            yield json.dumps(replaced(content, place, value)).encode()
        yield json.dumps(removed(content, place)).encode()


def places(content: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key, and the first entry of every list."""
    keys = list(content) if isinstance(content, dict) else [0] if isinstance(content, list) and content else []
    for key in keys:
        yield (*above, key)
        yield from places(content[key], (*above, key))


def replaced(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


def removed(content: Any, place: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(content)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return changed


@pytest.mark.parametrize(("name", "write", "read", "files"), READERS, ids=[reader[0] for reader in READERS])
def test_no_reader_ends_with_a_bare_error(
    name: str, write: Callable[[Path], Any], read: Callable[[Path], Any], files: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path)
    read_all(read(tmp_path))
    for pattern in files:
        (path, *_) = sorted(tmp_path.glob(pattern))
        whole, refused = path.read_bytes(), 0
        for content in damaged(whole):
            path.write_bytes(content)
            try:
                read_all(read(tmp_path))
            except FlmmError:
                refused += 1
            except Exception as exc:
                raise AssertionError(f"{path.name} with {content[:300]!r} ended the run: {exc!r}") from exc
        path.write_bytes(whole)
        assert refused >= 8, f"{name}: most damages of {path.name} went unnoticed"
