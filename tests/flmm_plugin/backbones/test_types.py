"""Some types go through the whole of `verdicts` here; all do in `docs/make_types.py --check`, a job of `.ci/run`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flmm_plugin.backbones.registry import FAMILIES, Family

from .tiny_types import FACTS, TYPES
from .verdicts import verdict_of

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "docs"))

# Merged patches, tiles with a thumbnail, a picture that is a prefix, a LLaVA of another tower, a query-based projector.
SHOWN = dict.fromkeys(("glm46v", "qianfan_ocr", "paligemma", "pixtral"), "grounds") | {"idefics2": "chats"}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_type_gets_its_verdict(kind: str, tmp_path: Path) -> None:
    if FACTS.get(kind, {}).get("model_type", kind) not in TYPES:
        assert "qianfan" in kind, "older transformers know all others"
        return
    found = verdict_of(kind, tmp_path / "model")
    assert found.kind == SHOWN[kind], found.reason


def test_a_type_that_falls_out_of_grounds_is_a_problem() -> None:
    import make_types

    def row(kind: str, verdict: str, version: str = "5.23.0") -> dict[str, str]:
        return {"transformers": version, "type": kind, "verdict": verdict, "reason": "so"}

    known = [row("a", "grounds"), row("b", "chats"), row("c", "grounds", "5.0.0")]
    assert make_types.problems([row("a", "grounds"), row("b", "refused")], known) == []
    assert len(make_types.problems([row("a", "chats"), row("b", "bug")], known)) == 2
    # A version that was never tried is held to what any other grounds.
    assert len(make_types.problems([row("c", "refused", "6.0.0")], known)) == 1


@pytest.mark.parametrize("named", FAMILIES, ids=lambda one: one.model)
def test_a_named_model_chats_at_least(named: Family) -> None:
    import make_types

    verdicts = {row["type"]: row["verdict"] for row in make_types.read_csv()} | SHOWN
    measured = [kind for kind, place in named.classes.items() if place.startswith("auto:")]
    assert {verdicts[kind] for kind in measured} <= {"grounds", "chats"}


def test_the_committed_table_names_no_bug_and_enough_types() -> None:
    import make_types

    rows = make_types.read_csv()
    newest = max(row["transformers"] for row in rows)
    verdicts = [row["verdict"] for row in rows if row["transformers"] == newest]
    assert "bug" not in verdicts
    assert verdicts.count("grounds") >= 45
    assert make_types.table(rows) in make_types.PAGE.read_text(encoding="utf-8")
