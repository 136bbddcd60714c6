"""Charts draw the numbers they are given; ranks and recall are what their definitions say."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_plugin.errors import DataNotFound
from flmm_plugin.records import encode_rle
from flmm_plugin.reports import charts
from flmm_plugin.reports.charts import Bar, Chosen, Panel, ablation_bars, chosen_words
from flmm_plugin.reports.comparison import compare
from flmm_plugin.reports.result_files import read_results
from flmm_plugin.reports.sample_files import PhraseView, SampleView, read_samples
from flmm_plugin.reports.sample_sheet import logged_masks, sample_sheet
from flmm_plugin.reports.table_layouts import LAYOUTS
from tests.reports.conftest import mask_sample, square

BLUE, ORANGE, GREEN = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)


def size_of(png: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(png)) as opened:
        assert len(np.unique(np.asarray(opened.convert("RGB")).reshape(-1, 3), axis=0)) > 20
        return opened.size


def test_ranks_of_the_paper_as_printed_and_as_computed() -> None:
    printed = charts.published_ranks()
    assert len(printed) == 10
    assert charts.RankPoint("LLaVA-1.6-M-7B", 3.25, 1.66) in printed
    computed, lacking = charts.ranks_of(compare(LAYOUTS["1"], []))
    assert lacking == {}
    assert {point.name for point in computed} == {point.name for point in printed}
    # Places of ten models average to 5.5, whatever the ties.
    assert np.mean([point.chat for point in computed]) == pytest.approx(5.5)
    assert np.mean([point.ground for point in computed]) == pytest.approx(5.5)
    assert np.mean([point.chat for point in printed]) == pytest.approx(5.5)
    # By hand: MGM-HD-7B is 1st in MME (1865; LLaVA-1.5 has 1859), 7th in MMBench, 4th in MMVet, 3rd in LLaVA-W.
    assert next(point.chat for point in computed if point.name == "MGM-HD-7B") == (1 + 7 + 4 + 3) / 4
    # The paper's claim: better chat goes with better grounding, in both.
    for points in (printed, computed):
        assert charts.fit(points).slope > 0.8
        assert charts.fit(points).r > 0.8
    assert size_of(charts.rank_chart({"printed": printed, "computed": computed}))[0] > 500


def test_a_measured_model_joins_the_ranks_only_when_whole(write_run: Callable[..., Path]) -> None:
    whole = {"items": 1, "complete": 1}
    tasks = {
        "mme": {"mme_perception_score": 2000.0, "mme_cognition_score": 500.0},
        "mmbench_en_dev": {"gpt_eval_score": 99.0},
        **{f"flmm_{name}_val": {"cIoU": 99.0, **whole} for name in ("refcoco", "refcoco+", "refcocog")},
        "flmm_png": {"AR": 99.0, "AR_thing": 99.0, "AR_stuff": 99.0, **whole},
    }  # fmt: skip
    counts = {"mme": (2374, 2374), "mmbench_en_dev": (4329, 4329)}
    run = write_run("a", "flmm_llava", tasks, arguments="pretrained=x/best", record={}, counts=counts)
    points, lacking = charts.ranks_of(compare(LAYOUTS["1"], read_results([run])))
    assert len(points) == 10
    assert lacking == {"F-LMM (best)": ["MMVet", "LLaVA-W"]}


def test_fit_needs_two_models() -> None:
    with pytest.raises(DataNotFound, match="models"):
        charts.fit([charts.RankPoint("a", 1, 1)])
    line = charts.fit([charts.RankPoint("a", 1, 3), charts.RankPoint("b", 2, 5)])
    assert (round(line.slope, 6), round(line.offset, 6), round(line.r, 6)) == (2, 1, 1)


def test_recall_curve_counts_by_hand() -> None:
    ious = np.random.default_rng(0).random(57).round(2).tolist()
    thresholds, recall = charts.recall_curve(ious)
    for threshold, share in zip(thresholds, recall, strict=True):
        assert share == pytest.approx(sum(iou >= threshold - 1e-9 for iou in ious) / 57)
    assert recall[0] == 1


def sample(doc: int, iou: float, image: str, scores: float | None = 0.5) -> SampleView:
    mask = encode_rle(square((40, 60), 5, 5, 10))
    return SampleView(
        "m", "t", doc, "q", "x", "", image=image, phrases=(PhraseView("a thing", iou, scores, mask, mask),)
    )


def test_recall_and_samples_from_logs(write_run: Callable[..., Path], picture: Path) -> None:
    lines = [mask_sample(n, ["left", "right"], str(picture), [n, 2 * n]) for n in range(4)]
    run = write_run("a", "flmm_llava", {"flmm_refcoco_val": {"cIoU": 1.0}}, samples={"flmm_refcoco_val": lines})
    views = list(read_samples(read_results([run])))
    assert size_of(charts.recall_chart(views))[0] > 500
    sheet = sample_sheet(views, 2)
    assert sheet.width == 3 * 480 + 2 * 6
    with pytest.raises(DataNotFound, match="IoU"):
        charts.recall_chart([])
    with pytest.raises(DataNotFound, match="drawn"):
        sample_sheet([sample(0, 0.5, "gone.png")])


def test_sheet_takes_the_worst_and_draws_no_score_that_was_not_logged(picture: Path) -> None:
    samples = [sample(n, iou, str(picture)) for n, iou in enumerate((0.9, 0.1, 0.5))]
    worst = sample_sheet([samples[1], samples[2]], order="document")
    assert sample_sheet(samples, 2).tobytes() == worst.tobytes()
    assert sample_sheet(samples, 2, order="best").tobytes() != worst.tobytes()
    (known,), (unknown,) = logged_masks(samples[0].phrases), logged_masks(sample(0, 0.5, "", None).phrases)
    assert known.score == 0.5
    assert np.isnan(unknown.score)
    assert known.phrase == "a thing (IoU 0.90)"
    wrong = encode_rle(square((41, 60), 5, 5, 10))
    odd = SampleView("m", "t", 0, "q", "x", "", image=str(picture), phrases=(PhraseView("a", 0.5, 0.5, wrong, None),))
    with pytest.raises(DataNotFound):
        sample_sheet([odd])


def test_ablation_bars_for_published_and_measured(write_run: Callable[..., Path]) -> None:
    heads = {"sha256": "a", "sam": "vit_b", "prompts": "no refiner"}
    run = write_run("a", "flmm_tiny", {"flmm_tiny_png": {"AR": 60.0, "complete": 0}}, record={"heads": heads})
    tables = [compare(LAYOUTS[name], read_results([run])) for name in ("5a", "5b")]
    assert size_of(charts.ablation_chart(tables))[0] > 900
    with pytest.raises(DataNotFound, match="rows"):
        charts.ablation_chart([compare(LAYOUTS["5a"], [], published=False)])


def painted(png: bytes, colour: tuple[int, int, int]) -> int:
    """Pixels of nearly a colour; bars are not quite opaque."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.abs(pixels - np.array(colour)).sum(axis=2) < 110).sum())


def test_a_panel_per_comparison_and_a_diamond_where_the_paper_has_a_number() -> None:
    layers = Panel("layers", "recall, %", (Bar("early", (40.0,)), Bar("all", (50.0, 52.0))), "all best")
    prompts = Panel("prompts", "recall, %", (Bar("mask", (60.0,), 63.4),))
    alone, both = ablation_bars([layers]), ablation_bars([layers, prompts])
    assert Image.open(io.BytesIO(both)).width > 1.8 * Image.open(io.BytesIO(alone)).width
    assert painted(alone, ORANGE) == 0
    assert painted(both, ORANGE) > 0
    assert painted(alone, BLUE) > 1000
    assert both == ablation_bars([layers, prompts])  # the same numbers give the same file


def test_a_higher_bar_is_taller() -> None:
    low = ablation_bars([Panel("", "", (Bar("a", (40.0,)), Bar("b", (60.0,))))])
    equal = ablation_bars([Panel("", "", (Bar("a", (60.0,)), Bar("b", (60.0,))))])
    assert painted(low, BLUE) < painted(equal, BLUE)


def test_nothing_cannot_be_drawn() -> None:
    with pytest.raises(DataNotFound, match="runs"):
        ablation_bars([])
    with pytest.raises(DataNotFound, match="runs"):
        ablation_bars([Panel("layers", "", ())])
    with pytest.raises(DataNotFound, match="selector"):
        chosen_words([])


def test_selectors_tools_and_the_paper_look_different() -> None:
    here = [Chosen("0.1", 60, 98), Chosen("0.3", 80, 95)]
    paper, tool = Chosen("spaCy (paper)", 41.1, 97.3, "paper"), Chosen("noun chunks", 50, 90, "tool")
    assert painted(chosen_words(here), BLUE) > 0
    assert painted(chosen_words(here), ORANGE) == 0
    assert painted(chosen_words([*here, paper]), ORANGE) > 0
    assert painted(chosen_words([*here, tool]), GREEN) > painted(chosen_words(here), GREEN)
