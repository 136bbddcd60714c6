"""The page of scale: what is paid once does not shrink, what is paid per document does."""

from __future__ import annotations

import csv
from types import ModuleType

from flmm_plugin.bench.results import Row
from flmm_plugin.cli.plan_time import Stage
from flmm_plugin.reports.table_layouts import layouts_of


def test_documents_are_shared_and_the_start_is_not(script: ModuleType) -> None:
    task = layouts_of(["A3"])[0].tasks[0]
    load = script.load_of(["A3", "A3"], {task: Stage(task, 6400, 0.1, "", parts={"SAM": 0.09})}, 0.01)
    assert load.documents == 6400
    assert round(load.parts["SAM"]) == 576
    text = script.scale_table({"A3": load, "3": script.Load(unknown=2)}, {"start": 64.0}, {})
    known, unknown = csv.DictReader(text.splitlines())
    assert (known["1 GPU"], known["64 GPUs"]) == ("12 min", "74 s")
    assert known["1 GPU: most of it"] == "SAM 82 %"
    assert known["64 GPUs: most of it"] == "start, loading, seal 86 %"
    assert unknown["8 GPUs"] == "?"


def test_a_seal_twice_as_fast_halves_its_part(script: ModuleType) -> None:
    def seconds(speed: float) -> float:
        rows = {"start/stock": 20.0, "start/ours over stock": 0.5, "seal/wall": speed}
        found = script.fixed_seconds({name: Row(name, value) for name, value in rows.items()})
        assert found["start of lmms_eval"] == 10
        return float(found["seal, made and checked"])

    assert seconds(2.0) == 2 * seconds(4.0)
