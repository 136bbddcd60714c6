"""A run of a few steps on four pictures, in this process or in forked ones."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flmm_plugin.training.loop import Trainer
from flmm_plugin.training.recipe import TrainRecipe

from .frozen import SMALL_SAM

PARTS = [{"dataset": "refcoco", "split": "val"}, {"dataset": "png", "split": "val"}]


def small_recipe(root: Path, **changes: Any) -> TrainRecipe:
    """Two lists of expressions and two narratives, in batches of two: two steps an epoch, two epochs."""
    facts: dict[str, Any] = {
        "heads": {"decoder": {"base_channels": 4, "upsample_to": 16}, "refiner": {"sam": SMALL_SAM}},
        "data": {"root": str(root), "parts": PARTS},
        "optimiser": {"lr": 1e-3},
        "cache": {"folder": str(root / "features")},
        "saving": {"every": 2},
        "epochs": 2,
        "batch_size": 2,
        "trackers": [],
    }
    return TrainRecipe.from_dict({**facts, **changes})


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "last.safetensors")


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def forked(act: Callable[[], None]) -> int:
    """Do something in a child; returns its exit code, negative for the signal that killed it."""
    child = multiprocessing.get_context("fork").Process(target=_alone, args=(act,), daemon=True)
    child.start()
    child.join(120)
    ended = child.exitcode
    child.kill()
    assert ended is not None, "the child hangs"
    return ended


def forked_together(count: int, act: Callable[[], None]) -> list[int]:
    """Do something in several children that find each other as a launcher's processes do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_one_of, args=(rank, count, port, act), daemon=True) for rank in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    hanging = [child for child in children if child.exitcode is None]
    for child in hanging:
        child.kill()
    assert not hanging, "a child waits for ever"
    return [int(child.exitcode or 0) for child in children]


def run(recipe: TrainRecipe, out: Path, backbone: Any, **options: Any) -> Any:
    return Trainer(recipe, out, backbone=backbone, progress=False, **options).run()


def _alone(act: Callable[[], None]) -> None:
    torch.set_num_threads(1)  # OpenMP's threads of the parent do not live here
    act()


def _one_of(rank: int, count: int, port: int, act: Callable[[], None]) -> None:
    from accelerate.state import AcceleratorState, PartialState

    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    act()
