"""Localisation heads found on the embedded model, through the command and beside the trained heads."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_plugin.cli import main
from flmm_plugin.errors import BadImage
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads.attention_rules import choose_maps
from flmm_plugin.heads.training_free import method_of
from flmm_plugin.reports.tables import read_csv
from flmm_plugin.tiny.baselines import COLUMNS, as_csv, as_text, measure_training_free
from flmm_plugin.training.features import FrozenReader
from flmm_plugin.training.localization import localization_heads
from flmm_plugin.training.recipe import DataPart, read_recipe
from flmm_plugin.training.samples import TrainingSample, TrainingSet


@pytest.fixture(scope="module")
def samples() -> list[TrainingSample]:
    return list(TrainingSet(read_recipe("flmm_tiny", ["data.scenes=4"]), [DataPart("refcoco", "train")]))


def test_heads_are_counted_over_all_phrases(samples: list[TrainingSample]) -> None:
    lmm = GroundedLMM.from_pretrained("flmm_tiny", heads="attention-argmax")
    reader = FrozenReader(lmm)
    by_hand = choose_maps([maps for sample in samples for maps in reader.words(sample).attention], 2, 5)

    def broken() -> None:
        raise BadImage("cut off")

    bad = TrainingSample("bad", Path("bad.png"), broken, "Look.", ("it",), (0,), list, False)  # type: ignore[arg-type]
    problems: list[str] = []
    method = localization_heads(lmm, [bad, *samples], kept=2, candidates=5, problems=problems)
    assert method.maps == by_hand
    assert problems == ["bad: cut off"]


def test_the_command_prints_what_heads_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "localize", "--data", "flmm_tiny_train", "--limit", "4", "--heads", "2"]) == 0
    out, err = capsys.readouterr()
    method = method_of(out.strip())
    assert method is not None
    assert len(method.maps) == 2
    layer, head = divmod(method.maps[0], 6)
    assert f"layer {layer + 1}, head {head + 1}" in err


def test_the_table_has_a_row_for_every_method(tmp_path: Path) -> None:
    measured = measure_training_free(seed=3, scenes=1, chosen_from=4)
    rows = measured["rows"]
    assert [row["prompt"] for row in rows] == ["box + mask + text", "nothing", "point", "box", "box"]
    assert rows[1]["decoder_ciou"] == rows[1]["refined_ciou"]  # without SAM there is one mask
    assert len({row["n"] for row in rows}) == 1
    (tmp_path / "table.csv").write_text(as_csv(measured))
    table = read_csv(tmp_path / "table.csv")
    assert list(table.columns) == list(COLUMNS.values())
    assert len(table) == len(rows) == as_text(rows).count("\n")


def test_a_table_that_cannot_be_written_costs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tiny", "baselines", "--out", str(tmp_path / "no" / "table.csv")]) == 2
    assert "there is no folder" in capsys.readouterr().err
