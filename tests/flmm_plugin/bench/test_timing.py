"""The clock's comparisons: order of the arms, the null arm, and the self time of captures."""

from __future__ import annotations

import doctest
import json
from pathlib import Path

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from flmm_plugin.bench import groups, papers_way, results, timing
from flmm_plugin.bench.models import random_lmm
from flmm_plugin.bench.timing import NULL, Clock, Ratio, Times, interleaved, watched_captures
from flmm_plugin.capture import capture_passages

CPU = torch.device("cpu")


@pytest.mark.parametrize("module", [timing, results])
def test_examples_hold(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


def test_arms_take_turns_and_the_null_arm_repeats_the_first() -> None:
    ran: list[str] = []
    arms = {name: lambda name=name: ran.append(name) for name in ("a", "b")}
    times = interleaved(arms, 2, Clock(CPU))
    assert ran == ["a", "b", "a", "b", "a", "b", "a", "a"]  # warm up; a b null; b null a
    assert list(times.seconds) == ["a", "b", NULL]
    assert all(len(one) == 2 for one in times.seconds.values())


def test_a_ratio_is_taken_within_rounds() -> None:
    # A slow second round hits both arms: the ratio of medians would be 1.5, each round's ratio is 1.5 or 2.
    found = Times({"a": [1.0, 20.0, 1.0], "b": [2.0, 30.0, 2.0], NULL: [1.0, 20.0, 1.1]}).ratio("b", "a")
    assert (found.median, found.minima) == (2.0, 2.0)
    assert found.low == pytest.approx(1.6)


def test_what_lies_within_the_null_arm_is_not_resolved() -> None:
    times = Times({"a": [1.0, 1.0], "b": [1.02, 1.02], NULL: [0.9, 1.1]})
    assert not results.Row.ratio("b", times, "b", "a").resolved
    assert "not resolved" in str(results.Row.ratio("b", times, "b", "a"))
    assert Ratio(1.3, 1.3, 1.3, 1.3).resolved(times.null)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_the_papers_way_reads_the_same_maps_and_the_watch_changes_nothing(family: str) -> None:
    shape = groups.Shape(family, family, (112, 84), layers=2, hidden=96, heads=4, tower=64, tower_layers=1)
    lmm = random_lmm(shape, CPU)
    picture = groups.Pictures(shape.picture).next()
    encoded, passage = papers_way.written(lmm, [picture], groups.PHRASES)
    ((maps, states, _),) = papers_way.read(lmm.backbone, encoded, [passage])
    (plain,) = capture_passages(lmm.backbone, encoded, [passage], lmm.merge)
    before = [list(hooks) for hooks in timing._hooks(lmm.backbone.decoder)]
    with watched_captures(lmm.backbone.decoder, Clock(CPU)) as added:
        (watched,) = capture_passages(lmm.backbone, encoded, [passage], lmm.merge)
        assert added() > 0
    assert torch.equal(plain.rows, watched.rows)
    assert torch.allclose(plain.maps(lmm.backbone), maps, atol=1e-6)
    assert torch.allclose(plain.hidden, states, atol=1e-4)
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    assert [list(hooks) for hooks in timing._hooks(lmm.backbone.decoder)] == before


def test_memory_counts_what_is_alive_at_once() -> None:
    def work() -> None:
        for _ in range(3):
            torch.ones(200 << 20, dtype=torch.uint8)

    assert 100 << 20 < timing.peak_bytes(work, CPU) < 350 << 20


def test_results_are_kept_by_group_and_stand_beside_what_was_to_be_reached(tmp_path: Path) -> None:
    target = results.Target("12 MP", "picture/embedded/12 MP", 0.5)
    assert target in [results.Target("12 MP", one.name, one.bar) for one in results.TARGETS]
    rows = [results.Row.seconds(target.name, [0.4, 0.42])]
    slow = [results.Row(one.name, 1.0, rounds=2) for one in results.TARGETS if one.name.startswith("pass/")]
    results.save(tmp_path, CPU, {"pictures": [results.Row(target.name, 3.0, "s")], "passes": slow}, {"rounds": 2})
    path = results.save(tmp_path, CPU, {"pictures": rows}, {"rounds": 2})
    assert path.name.startswith("cpu-")
    assert set(json.loads(path.read_text())["groups"]) == {"pictures", "passes"}
    assert results.load(path)[target.name].value == 0.4
    _, _, table = results.write_tables(path)
    assert '"12 MP picture, one phrase: embedded model",400 ms,' in table.read_text()
    assert table.read_text().splitlines()[-1].endswith("500 ms,yes")


def test_rows_without_a_target_are_no_rows_of_the_table() -> None:
    names = [one.name for one in results.TARGETS]
    assert len(names) == len(set(names))
