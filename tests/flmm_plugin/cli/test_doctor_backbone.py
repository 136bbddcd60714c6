"""``flmm doctor --backbone`` on a real tiny model: verified or not, recorded, compared, and found different."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flmm_plugin import verification
from flmm_plugin.cli import main
from flmm_plugin.heads.released import RELEASED, ReleasedLMM
from flmm_plugin.verification import (
    FixedInput,
    Records,
    Triple,
    Verified,
    installed_triple,
    read_records,
    write_records,
)

Doctor = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of its own, empty."""
    path = tmp_path / "verified.json"
    for function in (verification.read_records, verification.write_records):
        defaults = tuple(path if one == verification.RECORDS else one for one in function.__defaults__ or ())
        monkeypatch.setattr(function, "__defaults__", defaults)
    return path


@pytest.fixture
def doctor(llava_folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Doctor:
    """``doctor(*words, status=0)``: name -> (status, detail) of the findings about the tiny LLaVA."""

    def run(*words: str, name: str | None = None, status: int = 0) -> dict[str, tuple[str, str]]:
        model = name if name is not None else str(llava_folders["mha"])
        assert main(["doctor", "--backbone", model, "--json", "--device", "cpu", *words]) == status
        found = json.loads(capsys.readouterr().out)
        return {one["name"]: (one["status"], one["detail"]) for one in found if one["topic"] == "backbone"}

    return run


def test_recorded_then_compared_then_different(doctor: Doctor, records: Path) -> None:
    first = doctor()
    assert first["family"] == ("ok", "llava")
    assert first["triple"][0] == "note"
    assert "not verified for llava; verified: none" in first["triple"][1]
    assert first["chat"][0] == first["rows"][0] == "ok"
    assert first["fingerprint"][0] == "note"
    assert "none for these weights is recorded" in first["fingerprint"][1]
    assert not records.exists()

    write_records(Records((Verified("llava", installed_triple("sdpa"), 7),)), records)
    assert doctor("--record")["fingerprint"][1].startswith("recorded for ")
    again = doctor()
    assert again["triple"] == (
        "ok",
        f"{installed_triple('sdpa')}: verified, 7 conformance tests of llava passed with it",
    )
    assert again["fingerprint"][0] == "ok"
    assert "12 numbers agree with those recorded with" in again["fingerprint"][1]

    stored = read_records(records)
    (one,) = stored.fingerprints
    moved = {layer: [values[0] * 1.01, *values[1:]] for layer, values in one.numbers.items()}
    other = Triple("4.39.1", "2.1.0", "eager")
    write_records(Records(stored.triples, (replace(one, numbers=moved, triple=other),)), records)
    different = doctor(status=1)["fingerprint"]
    assert different[0] == "bad"
    assert "mass of layer" in different[1]
    assert "transformers 4.39.1, torch 2.1.0, eager" in different[1]

    write_records(Records(stored.triples, (replace(one, weights="other"),)), records)
    assert "only of other weights of that name" in doctor()["fingerprint"][1]


def test_another_kernel_is_another_triple_with_the_same_numbers(doctor: Doctor, records: Path) -> None:
    write_records(Records((Verified("llava", installed_triple("sdpa"), 7),)), records)
    doctor("--record")
    eager = doctor("--attn-implementation", "eager")
    assert "eager: not verified for llava; verified: transformers" in eager["triple"][1]
    assert eager["fingerprint"][0] == "ok"


def test_a_failed_check_is_bad_and_nothing_is_recorded(
    doctor: Doctor, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FixedInput, "rows_from_eager", lambda self, rows: 0.5)
    found = doctor("--record", status=1)
    assert found["rows"][0] == "bad"
    assert found["fingerprint"] == ("bad", "not recorded: a check above failed")
    monkeypatch.setattr(FixedInput, "chat_is_untouched", lambda self: False)
    assert "a bug, report it" in doctor(status=1)["chat"][1]
    assert not records.exists()


def test_weights_elsewhere_and_names_of_nothing(
    doctor: Doctor, records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor(name="some-owner/some-model", status=1)
    assert found["family"][0] == "note"
    assert "hf download some-owner/some-model" in found["weights"][1]
    (tmp_path / "empty").mkdir()
    assert doctor(name=str(tmp_path / "empty"), status=1)["loading"][0] == "bad"
    assert main(["doctor", "--record"]) == 2
    assert "flmm doctor --backbone NAME --record" in capsys.readouterr().err


def test_the_embedded_model_has_the_attention_that_is_recorded_for_it(doctor: Doctor) -> None:
    """Recorded again with `flmm doctor --backbone flmm_tiny --record` whenever its weights are replaced."""
    found = doctor(name="flmm_tiny")
    assert found["fingerprint"][0] == "ok", found["fingerprint"][1]
    assert found["chat"][0] == found["rows"][0] == "ok"


@pytest.mark.weights
@pytest.mark.parametrize("lmm", RELEASED, ids=lambda lmm: lmm.name)
def test_a_real_model_passes_all_checks(lmm: ReleasedLMM, capsys: pytest.CaptureFixture[str]) -> None:
    """``$FLMM_WEIGHTS/<last part of the hub name>``; in the precision and on the device that `flmm doctor` takes."""
    folder = Path(os.environ["FLMM_WEIGHTS"]) / lmm.hub.rpartition("/")[2]
    if not folder.is_dir():
        pytest.skip(f"hf download {lmm.hub} --local-dir {folder}")
    status = main(["doctor", "--backbone", str(folder), "--json"])
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert status == 0, [one for one in found.values() if one["status"] == "bad"]
    assert found["chat"]["status"] == "ok"
