"""Annotation pickles are read as data; whatever else they hold is refused before it can act."""

from __future__ import annotations

import copyreg
import os
import pickle
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
