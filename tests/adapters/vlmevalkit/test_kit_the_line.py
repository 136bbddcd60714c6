"""The same line through the kit, from an empty home, against servers on this machine."""

from __future__ import annotations

import pytest

from tests.loopback.conftest import published, world  # noqa: F401
from tests.loopback.published import DEEPSEEK, HEADS
from tests.loopback.world import World

#: Two runs, each of which imports the kit.
pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("kit")]

LINE = ("flmm-vlmeval", "--data", "MME", "RefCOCO_SEG", "--model", "flmm_deepseekvl")


def test_from_nothing_to_both_results(world: World) -> None:  # noqa: F811
    refused = world.run(*LINE, "--no-fetch")
    assert refused.status == 2, refused.output
    assert refused.fetched == {}
    for part in (DEEPSEEK, "DeepSeekVL-1.3B", "vit_l", "RefCOCO", "train2014"):
        assert part in refused.output

    run = world.run(*LINE)
    assert run.status == 0, run.output
    assert "flmm_deepseekvl x MME: done" in run.output
    assert "flmm_deepseekvl x RefCOCO_SEG: done" in run.output
    for part in (HEADS[DEEPSEEK][0], "segment_anything", "refcoco.zip", "train2014/", "model.safetensors"):
        assert any(part in address for address in run.fetched), part
    assert not run.asked("zips/train2014", "pytorch_model.bin")
    assert world.unknown == []
