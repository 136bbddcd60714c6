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
from flmm_plugin.reports.comparison import compare
from flmm_plugin.reports.qualitative import groundings, qualitative_cards, qualitative_sheet
from flmm_plugin.reports.result_files import read_results
from flmm_plugin.reports.sample_files import PhraseView, SampleView, read_samples
from flmm_plugin.reports.table_layouts import LAYOUTS
from tests.reports.conftest import mask_sample, square


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
    with pytest.raises(DataNotFound, match="two models"):
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
    sheet = qualitative_sheet(views, 2)
    assert sheet.width == 3 * 480 + 2 * 6
    with pytest.raises(DataNotFound, match="no sample has an IoU"):
        charts.recall_chart([])
    with pytest.raises(DataNotFound, match="no sample can be drawn"):
        qualitative_sheet([sample(0, 0.5, "gone.png")])


def test_sheet_takes_the_worst_and_draws_no_score_that_was_not_logged(picture: Path) -> None:
    samples = [sample(n, iou, str(picture)) for n, iou in enumerate((0.9, 0.1, 0.5))]
    cards = qualitative_cards(samples, 2).cards
    assert [card.caption for card in cards] == ["a thing", "a thing"]
    (known,), (unknown,) = groundings(samples[0].phrases), groundings(sample(0, 0.5, "", None).phrases)
    assert known.score == 0.5
    assert np.isnan(unknown.score)
    assert known.phrase == "a thing (IoU 0.90)"
    wrong = encode_rle(square((41, 60), 5, 5, 10))
    odd = SampleView("m", "t", 0, "q", "x", "", image=str(picture), phrases=(PhraseView("a", 0.5, 0.5, wrong, None),))
    with pytest.raises(DataNotFound):
        qualitative_sheet([odd])


def test_ablation_bars_for_published_and_measured(write_run: Callable[..., Path]) -> None:
    heads = {"sha256": "a", "sam": "vit_b", "prompts": "no refiner"}
    run = write_run("a", "flmm_tiny", {"flmm_tiny_png": {"AR": 60.0, "complete": 0}}, record={"heads": heads})
    tables = [compare(LAYOUTS[name], read_results([run])) for name in ("5a", "5b")]
    assert size_of(charts.ablation_chart(tables))[0] > 900
    with pytest.raises(DataNotFound, match="without rows"):
        charts.ablation_chart([compare(LAYOUTS["5a"], [], published=False)])
