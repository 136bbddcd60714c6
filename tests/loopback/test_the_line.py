"""The line that a user types, from an empty home to both numbers: parts missing, servers failing, runs killed.

Weights are random, so no test looks at how good a number is.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def test_both_numbers_then_nothing_is_fetched(world: World) -> None:
    both = world.run(*line())
    assert gives_both_numbers(both)
    found = {kind: count for kind, count in kinds(both).items() if kind != "settings"}
    assert found == {"weights": 1, "data": 1, "heads": 1, "sam": 1, "refcoco": 1, "picture": PICTURES}
    assert "S-Lab" in both.output

    again = world.run(*line())
    assert gives_both_numbers(again)
    assert again.fetched == {}
    assert again.scores == both.scores
    assert world.unknown == []


@pytest.mark.slow
def test_chat_alone_fetches_neither_heads_nor_sam(world: World) -> None:
    chat = world.run(*line(tasks="mme"))
    assert chat.status == 0, chat.output
    assert {kind: count for kind, count in kinds(chat).items() if kind != "settings"} == {"weights": 1, "data": 1}
    both = world.run(*line())
    assert gives_both_numbers(both)
    assert kinds(both) == {"heads": 1, "sam": 1, "refcoco": 1, "picture": PICTURES}


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


# --- from a machine where everything is ready ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def ready(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home and working folder of a user whose line has given both numbers."""
    from .published import stock

    with World(tmp_path_factory.mktemp("ready")) as world:
        stock(world, published)
        assert gives_both_numbers(world.run(*line()))
        return world.folder


@pytest.fixture
def user(world: World, ready: Path) -> World:
    """Such a user, in a copy of these folders."""
    for name in ("home", "work"):
        shutil.copytree(ready / name, world.folder / name, symlinks=True, dirs_exist_ok=True)
    return world


def store(world: World) -> Path:
    return world.home / ".cache/flmm"


def without_model(world: World) -> None:
    shutil.rmtree(world.home / f".cache/huggingface/hub/models--{DEEPSEEK.replace('/', '--')}")


def without_heads(world: World) -> None:
    shutil.rmtree(store(world) / "heads")


def without_heads_and_sam(world: World) -> None:
    without_heads(world)
    shutil.rmtree(store(world) / "sam")


def without_mme(world: World) -> None:
    shutil.rmtree(world.home / ".cache/huggingface/datasets")
    for path in (world.home / ".cache/huggingface/hub").glob("datasets--*"):
        shutil.rmtree(path)


def without_refcoco(world: World) -> None:
    shutil.rmtree(world.work / "data/coco/refcoco")
    shutil.rmtree(world.work / "data/.flmm", ignore_errors=True)


def without_a_picture(world: World) -> None:
    sorted((world.work / "data/coco/train2014").glob("*.jpg"))[0].unlink()


Remove = Callable[[World], None]

PARTS: dict[str, tuple[Remove, dict[str, int], str]] = {
    "model": (without_model, {"weights": 1}, DEEPSEEK),
    "heads": (without_heads, {"heads": 1}, "DeepSeekVL-1.3B"),
    "heads and sam": (without_heads_and_sam, {"heads": 1, "sam": 1}, "vit_l"),
    "mme": (without_mme, {"data": 1}, "MME"),
    "refcoco": (without_refcoco, {"refcoco": 1}, "RefCOCO"),
    "a picture": (without_a_picture, {"picture": 1}, "train2014"),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", sorted(PARTS))
def test_one_part_is_missing(user: World, part: str) -> None:
    remove, comes, named = PARTS[part]
    remove(user)
    refused = user.run(*line(arguments="fetch=false"))
    assert refused.status not in (0, 1), refused.output
    screen = refused.output[refused.output.index("NotReady") :]
    assert named in screen
    # Which pictures a split shows, nobody knows before its annotations are here.
    unknown = 1 if part == "refcoco" else 0
    assert len(re.findall(r"^  (?:model|heads|sam|data) ", screen, re.MULTILINE)) == len(comes) + unknown
    assert refused.fetched == {}

    fetched = user.run(*line())
    assert gives_both_numbers(fetched)
    found = kinds(fetched)
    found.pop("settings", None)
    assert found == comes
    assert user.unknown == []


MISSING = {remove: named for remove, _, named in PARTS.values()}

# --- servers that fail ---------------------------------------------------------------------------------------------

DRIVE, META, UNC, COCO, HUB = (
    "drive.google.com", "dl.fbaipublicfiles.com", "bvisionweb1.cs.unc.edu", "images.cocodataset.org", "huggingface.co",
)  # fmt: skip
#: What is missing, what its server does, a word for it on the screen, the server.
FAILURES: dict[str, tuple[Remove, dict[str, Any], str, str]] = {
    "drive: gone": (without_heads, {"where": "drive.usercontent", "status": 404}, "page in place", DRIVE),
    "drive: cut": (without_heads, {"where": "confirm=t", "cut": 2_000_000}, "incomplete", DRIVE),
    "drive: quota": (without_heads, {}, "Too many users", DRIVE),
    "meta: page": (without_heads_and_sam, {"where": "segment_anything", "html": "Hi"}, "web page titled 'Hi'", META),
    "meta: cut": (without_heads_and_sam, {"where": "segment_anything", "cut": 5_000_000}, "ended after", META),
    "UNC: down": (without_refcoco, {"where": "refcoco.zip", "status": 502}, "502", UNC),
    "UNC: cut": (without_refcoco, {"where": "refcoco.zip", "cut": 1000}, "ended after", UNC),
    "COCO: gone": (without_a_picture, {"where": "train2014/", "status": 404}, "404", COCO),
    "COCO: cut": (without_a_picture, {"where": "train2014/", "cut": 1000}, "more expected", COCO),
    "hub: busy": (without_model, {"where": "huggingface.co/api", "status": 503}, "503", HUB),
    "hub: login": (without_model, {"where": "huggingface.co/api", "status": 401}, "hf auth login", HUB),
    "hub: weights": (without_model, {"where": "model.safetensors", "status": 503}, "503", HUB),
    "hub: data busy": (without_mme, {"where": "api/datasets", "status": 503}, "503", HUB),
    "hub: data cut": (without_mme, {"where": "test-00000", "cut": 1000}, "closed connection", HUB),
}


@pytest.mark.slow
@pytest.mark.parametrize("failure", sorted(FAILURES))
def test_a_server_fails_and_works_again(user: World, failure: str) -> None:
    remove, fault, word, server = FAILURES[failure]
    remove(user)
    if fault:
        user.break_(**fault)
    else:
        user.drive.quota |= {file_id for file_id, _ in HEADS.values()}
    failed = user.run(*line())
    assert failed.status == 2, failed.output
    screen = failed.output[failed.output.rindex("lmms_eval: ") :]
    for told in (word, server, MISSING[remove]):
        assert told in screen
    assert re.search(r"^      (flmm|hf) .*", screen, re.MULTILINE), screen
    assert "Traceback" not in failed.output

    user.mend()
    user.drive.quota.clear()
    works = user.run(*line())
    assert gives_both_numbers(works)
    if failure in ("drive: cut", "meta: cut", "UNC: cut"):
        assert [one.status for one in works.answered if one.request.headers.get("range")] == [206]


# --- kill -9 -------------------------------------------------------------------------------------------------------

PHASES: dict[str, tuple[Remove, dict[str, Any], str, dict[str, int]]] = {
    "LMM": (without_model, {"where": "model.safetensors", "hold": 100_000}, "", {"weights": 1}),
    "heads": (without_heads, {"where": "confirm=t", "hold": 2_000_000}, "", {"heads": 1}),
    "sam": (without_heads_and_sam, {"where": "segment_anything", "hold": 5_000_000}, "", {"sam": 1, "heads": 1}),
    "refcoco": (without_refcoco, {"where": "refcoco.zip", "hold": 1000}, "", {"refcoco": 1}),
    "pictures": (without_a_picture, {"where": "train2014/", "hold": 1000}, "", {"picture": 1}),
    "conversion": (without_heads, {}, r"convert", {"heads": 0}),
    "evaluation": (lambda _: None, {}, r"flmm: +\d\d%", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("phase", sorted(PHASES))
def test_killed_and_again(user: World, phase: str) -> None:
    remove, fault, says, comes = PHASES[phase]
    remove(user)
    process = user.start(*line())
    if fault:
        held = user.break_(**fault)
        wait_for(lambda: held.reached.is_set() or process.poll() is not None)
        assert held.reached.is_set(), user.output
    else:
        wait_for(lambda: bool(re.search(says, user.output)) or process.poll() is not None)
        assert process.poll() is None, user.output
    user.kill(process)
    user.mend()
    works = user.run(*line())
    assert gives_both_numbers(works)
    found = kinds(works)
    found.pop("settings", None)
    assert found == {kind: count for kind, count in comes.items() if count}
    assert user.run(*line()).fetched == {}
    leftovers = [path for path in store(user).rglob("*") if path.suffix in (".part", ".tmp")]
    assert leftovers == []


def wait_for(happened: Callable[[], bool], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
