"""``flmm reproduce table1`` from an empty home to the rendered table, killed while it fetches and while it answers."""

from __future__ import annotations

import re

import pytest

from .published import HEADS, SPLITS
from .test_the_line import wait_for
from .world import World

pytestmark = [pytest.mark.timeout(3600), pytest.mark.slow]

#: Of the table's tasks those whose data the played servers hold.
TASKS = ("flmm_refcoco_val", "mme")
REPRODUCE = ("flmm", "reproduce", "table1", "--backbones", "deepseek-vl-1.3b,llava-1.5-7b", "--tasks", ",".join(TASKS))


def test_one_screen_lists_what_all_models_need(world: World) -> None:
    refused = world.run(*REPRODUCE, "--no-fetch")
    assert refused.status == 2, refused.output
    assert refused.fetched == {}
    for part in (*HEADS, "DeepSeekVL-1.3B", "LLaVA-1.5-7B", "vit_l", "RefCOCO", "train2014", "MME"):
        assert part in refused.output


def test_killed_twice_and_rendered(world: World) -> None:
    held = world.break_("confirm=t", hold=2_000_000)
    fetching = world.start(*REPRODUCE)
    wait_for(lambda: held.reached.is_set() or fetching.poll() is not None)
    assert fetching.poll() is None, world.output
    world.kill(fetching)
    world.mend()

    answering = world.start(*REPRODUCE)
    begun = re.compile(r"\[2/2\].*flmm: +\d\d%", re.DOTALL)
    wait_for(lambda: bool(begun.search(world.output)) or answering.poll() is not None, seconds=1800)
    assert answering.poll() is None, world.output
    world.kill(answering)

    done = world.run(*REPRODUCE, timeout=1200)
    assert done.status == 0, done.output
    assert done.fetched == {}
    assert done.output.count("all results are there") == 1
    first, second = (world.work / "reproduce/table1/runs").iterdir()
    logs = [(folder / "log.txt").read_text() for folder in (first, second)]
    assert sorted(log.count("$ ") for log in logs) == [1, 2]
    table = (world.work / "reproduce/table1/table1.md").read_text()
    assert "DeepSeekVL-1.3B" in table
    assert "LLaVA-1.5-7B" in table
    assert (world.work / "reproduce/table1/report.html").is_file()

    whole = [one for one in world.proxy.answered if one.status in (200, 206) and one.sent and not one.is_page]
    counted: dict[str, int] = {}
    for one in whole:
        if one.request.method == "GET" and "/api/" not in one.request.address:
            counted[one.request.address] = counted.get(one.request.address, 0) + 1
    twice = {address for address, count in counted.items() if count > 1}
    assert all("confirm=t" in address for address in twice), twice
    assert sum(address.endswith(".jpg") for address in counted) == SPLITS["val"]
    assert world.unknown == []
