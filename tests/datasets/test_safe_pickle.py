"""Annotation pickles are read as data; whatever else they hold is refused before it can act."""

from __future__ import annotations

import contextlib
import copyreg
import os
import pickle
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.datasets.safe_pickle import load_data_pickle
from flmm_plugin.errors import BadAnnotation, DataNotFound, UnsafePickle

DATA = [{"ref_id": 3, "split": "val", "big": 2**70, "x": -1.5, "none": None, "t": (True, False), "s": "caf\u00e9"}]


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_is_read(tmp_path: Path, protocol: int) -> None:
    assert load_data_pickle(written(tmp_path, pickle.dumps(DATA, protocol))) == DATA


def test_what_python_2_wrote_is_read(tmp_path: Path) -> None:
    # cPickle.dumps([{"split": "val", "raw": u"caf\xe9", "id": 5L}], 0) and the same with protocol 2.
    text = b"(lp1\n(dp2\nS'split'\np3\nS'val'\np4\nsS'raw'\np5\nVcaf\xe9\np6\nsS'id'\np7\nL5L\nsa."
    binary = (
        b"\x80\x02]q\x01}q\x02(U\x05splitq\x03U\x03valq\x04U\x03rawq\x05"
        b"X\x05\x00\x00\x00caf\xc3\xa9q\x06U\x02id\x8a\x01\x05ua."
    )
    for content in (text, binary):
        assert load_data_pickle(written(tmp_path, content)) == [{"split": "val", "raw": "caf\u00e9", "id": 5}]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_code_is_refused_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "it ran"
    content = pickle.dumps([*DATA, Touch(trace)], protocol)
    with pytest.raises(UnsafePickle, match="mkdir"):
        load_data_pickle(written(tmp_path, content))
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists(), "the same bytes do act in a plain unpickler, so this test can fail"


@pytest.mark.parametrize("value", [{1, 2}, OrderedDict(a=1), np.float64(1.5), b"bytes", Path("x")], ids=repr)
def test_even_harmless_objects_are_refused(tmp_path: Path, value: Any) -> None:
    # At protocol 2 each of these is a call of something imported.
    with pytest.raises(UnsafePickle, match="nothing of it was executed"):
        load_data_pickle(written(tmp_path, pickle.dumps([value], 2)))


def test_every_way_to_name_a_global_is_closed(tmp_path: Path) -> None:
    copyreg.add_extension("os", "getcwd", 241)
    try:
        for content in (
            b"(ios\ngetcwd\n.",  # INST
            b"cos\ngetcwd\n)R.",  # GLOBAL
            b"\x80\x04\x8c\x02os\x8c\x06getcwd\x93)R.",  # STACK_GLOBAL
            b"\x80\x02\x82\xf1)R.",  # EXT1
            b"\x80\x02cos\ngetcwd\n)\x81.",  # NEWOBJ
            b"Pan outside object\n.",  # PERSID
        ):
            with pytest.raises(UnsafePickle):
                load_data_pickle(written(tmp_path, content))
    finally:
        copyreg.remove_extension("os", "getcwd", 241)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_cut_anywhere_is_a_bad_annotation(tmp_path: Path, protocol: int) -> None:
    content = pickle.dumps(DATA * 3, protocol)
    for length in range(len(content)):
        with pytest.raises(BadAnnotation, match="truncated or not a pickle"):
            load_data_pickle(written(tmp_path, content[:length]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match="absent"):
        load_data_pickle(tmp_path / "absent.p")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]q\x00" + b"".join(b"]q%c(h%ch%ce" % (n, n - 1, n - 1) for n in range(1, 60)) + b".",
        b"\x80\x02](X\x40\x42\x0f\x00" + b"a" * 10**6 + b"q\x00" + b"h\x00" * 10**6 + b"e.",
        b"\x80\x02](](" + b"K\x01" * 10**5 + b"eq\x00" + b"h\x00" * 10**5 + b"e.",
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02]q\x00(h\x00h\x00e.",
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        b"\x80\x02K\x01" + b"\x85" * 10**5 + b".",
        b"\x80\x02}K\x01" + b"\x85" * 10**6 + b"K\x01s.",
        b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    ],
    ids=[
        "doubled",
        "long text",
        "long list",
        "itself",
        "itself twice",
        "itself in a dict",
        "deep tuples",
        "deep key",
        "deep lists",
    ],
)
def test_what_stands_for_more_than_it_holds_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnsafePickle, match="official source"):
        load_data_pickle(written(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r\xff\xff\xff\xff.",
        b"(lp4294967295\n.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].",
        b"\x80\x04\x8d\xff\xff\xff\xff\x0f\x00\x00\x00a.",
        b"\x80\x04\x8e\xff\xff\xff\xff\x0f\x00\x00\x00a.",
        b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00a.",
        b"\x80\x02T\xff\xff\xff\x7fa.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x02\x8b\xff\xff\xff\x7fa.",
    ],
    ids=["memo", "memo in text", "frame", "text", "bytes", "byte array", "old text", "short text", "number"],
)
def test_numbers_in_a_small_file_claim_no_memory(tmp_path: Path, content: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(BadAnnotation):
            assert load_data_pickle(written(tmp_path, content)) == []
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_lists_that_are_shared_a_few_times_are_read(tmp_path: Path) -> None:
    tokens = ["a", "red", "circle"]
    refs = [{"sentences": [{"tokens": tokens, "raw": "x"}] * 3, "split": "val"} for _ in range(50)]
    assert load_data_pickle(written(tmp_path, pickle.dumps(refs, 2))) == refs


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_changed_bytes_are_read_or_named(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(protocol)
    content = np.frombuffer(pickle.dumps(DATA * 2, protocol), dtype=np.uint8)
    for _ in range(300):
        changed = content.copy()
        places = rng.integers(0, len(content), int(rng.integers(1, 5)))
        changed[places] = rng.integers(0, 256, len(places))
        with contextlib.suppress(BadAnnotation, UnsafePickle):
            load_data_pickle(written(tmp_path, changed.tobytes()))
