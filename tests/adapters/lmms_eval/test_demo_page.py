"""The demo's page, written from a random model: every section is there, and nothing is fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.adapters.lmms_eval import demo_page
from flmm_plugin.adapters.lmms_eval.agreement import Agreement
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads
from flmm_plugin.heads.manifest import HeadsManifest
from flmm_plugin.tiny.layouts import write_refer

# As `flmm tiny evaluate --json` prints it; a None is a number that does not exist.
MEASURED = {
    "seed": 3,
    "scenes": 2,
    "chat": {"color": {"exact": 0.75, "chance": 0.125, "n": 4}},
    "captions": {"precision": 0.9, "recall": 0.8, "n": 5},
    "keywords": {"precision": 0.7, "recall": 0.6, "f1": 0.65},
    "grounding": [
        {"method": "frozen LMM + heads", "decoder_ciou": 0.611, "refined_ciou": 0.722, "refined_miou": 0.7, "n": 9},
        {"method": "<whole> image", "decoder_ciou": None, "refined_ciou": 0.035, "refined_miou": 0.03, "n": 9},
    ],
    "provenance": {"torch": "2.15.0"},
}
MASKS = [["split", "cIoU", "items"], ["flmm_refcoco_val", "51.25", "4"]]
TABLE = [["task", "metric", "ours", "stock"], ["mme", "mme_perception_score", "150", "150"]]


@pytest.fixture
def random_lmm(load_llava: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> GroundedLMM:
    small = {"base_channels": 4, "upsample_to": 16}
    heads = GroundingHeads.build(HeadsManifest("tiny", 3, 4, 64, decoder=small, sam=None)).eval()
    lmm = GroundedLMM(load_llava("mha"), heads)
    monkeypatch.setattr(GroundedLMM, "from_pretrained", classmethod(lambda cls, *args, **options: lmm))
    return lmm


@pytest.mark.filterwarnings("ignore:heads were trained on")
def test_page_shows_tables_masks_attention_and_controls(random_lmm: GroundedLMM, tmp_path: Path) -> None:
    write_refer(tmp_path / "data", scenes=2, names=("refcoco",))
    agreement = Agreement(60, 60, ())
    page = demo_page.write(tmp_path, table=TABLE, masks=MASKS, agreement=agreement, controls=MEASURED, seconds=12.0)
    text = page.read_text(encoding="utf-8")
    assert page.name == "index.html"
    assert "60 of 60" in text
    for heading in (
        "With and without the plugin",
        "Masks, split by split",
        "Masks",
        "Attention",
        "Grounding and controls",
        "Chat",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "0.722" in text
    assert "51.25" in text
    assert "&lt;whole&gt; image" in text, "escaped"
    assert text.count("data:image/") >= 2 * 2 + 2, "pictures, their masks, and attention sheets"
    assert "IoU 0." in text
    assert "http://" not in text
    assert "https://" not in text


def test_objects_of_a_picture_come_together(tmp_path: Path) -> None:
    from flmm_plugin.datasets.refer import ReferDataset

    root = write_refer(tmp_path, scenes=3, names=("refcoco",))
    items = list(ReferDataset(root, "refcoco", "val"))
    groups = list(demo_page.by_picture(reversed(items)))
    assert [group[0].image_id for group in groups] == sorted({item.image_id for item in items})
    assert sum(len(group) for group in groups) == len(items)
    assert all(len({item.image_id for item in group}) == 1 for group in groups)
