"""The line that a user types, from an empty home to both numbers.

Weights are random, so no test looks at how good a number is.
"""

from __future__ import annotations

import re

import pytest

from .published import DEEPSEEK, HEADS, LLAVA
from .world import Run, World

#: A line imports torch, transformers and lmms-eval: seconds where nothing else runs, minutes where much does.
pytestmark = pytest.mark.timeout(1800)

NUMBERS = {"mme_perception_score", "cIoU"}
MODELS = {"flmm_deepseekvl": DEEPSEEK, "flmm_llava": LLAVA}
PICTURES = 4  # of the splits val, testA and testB; the fifth is of train


def line(model: str = "flmm_deepseekvl", tasks: str = "mme,refcoco_seg", arguments: str = "") -> list[str]:
    return ["lmms_eval", "--model", model, "--tasks", tasks, *(["--model_args", arguments] if arguments else [])]


def gives_both_numbers(run: Run) -> bool:
    assert run.status == 0, run.output
    return set(run.scores) >= NUMBERS


def kinds(run: Run) -> dict[str, int]:
    """Number of files that came, by kind."""
    found: dict[str, int] = {}
    for address in run.fetched:
        kind = next((kind for kind, pattern in _KINDS.items() if re.search(pattern, address)), address)
        found[kind] = found.get(kind, 0) + 1
    return found


_KINDS = {
    "weights": r"\.safetensors$", "settings": r"huggingface\.co/[^/]+/[^/]+/resolve/", "data": r"\.parquet$",
    "heads": r"drive\.usercontent", "sam": r"segment_anything", "refcoco": r"refcoco\.zip$", "picture": r"\.jpg$",
}  # fmt: skip


def test_chat_then_both_then_nothing_is_fetched(world: World) -> None:
    chat = world.run(*line(tasks="mme"))
    assert chat.status == 0, chat.output
    assert {kind: count for kind, count in kinds(chat).items() if kind != "settings"} == {"weights": 1, "data": 1}

    both = world.run(*line())
    assert gives_both_numbers(both)
    assert kinds(both) == {"heads": 1, "sam": 1, "refcoco": 1, "picture": PICTURES}
    assert "S-Lab" in both.output

    again = world.run(*line())
    assert gives_both_numbers(again)
    assert again.fetched == {}
    assert again.scores == both.scores
    assert world.unknown == []


def test_without_fetching_one_screen_lists_everything(world: World) -> None:
    run = world.run(*line(arguments="fetch=false"))
    assert run.status not in (0, 1), run.output
    assert run.fetched == {}
    screen = run.output[run.output.index("NotReady") :]
    for kind in ("model", "heads", "sam", "data"):
        assert re.search(rf"^  {kind} ", screen, re.MULTILINE), screen
    for part in (DEEPSEEK, "DeepSeekVL-1.3B", "vit_l", "MME", "RefCOCO", "train2014"):
        assert part in screen
    assert "Traceback" not in run.output
    assert world.unknown == []


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(MODELS))
def test_from_nothing_to_both_numbers(world: World, model: str) -> None:
    run = world.run(*line(model))
    assert gives_both_numbers(run)
    found = kinds(run)
    assert found.pop("settings") >= 5
    assert found == {"weights": 1, "data": 1, "heads": 1, "sam": 1, "refcoco": 1, "picture": PICTURES}
    assert any(HEADS[MODELS[model]][0] in address for address in run.fetched)
    assert not run.asked("pytorch_model.bin", "zips/train2014")
    assert world.unknown == []
