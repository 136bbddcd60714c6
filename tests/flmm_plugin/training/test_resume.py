"""Killed at any moment, a run ends with the weights of one that was not; what cannot be written leaves what was."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flmm_plugin.errors import BadCheckpoint, OutputFailed, TrainingStopped
from flmm_plugin.training.checkpoint import Checkpoints, load_process, random_states, save_process, set_random_states
from flmm_plugin.training.loop import Trainer
from flmm_plugin.training.recipe import TrainRecipe
from tests.flmm_plugin.test_json_lines import no_file_grows_beyond

from .runs import forked, run, same_bits, small_recipe, weights


@pytest.fixture
def recipe(refer_folder: Callable[..., Any], png_folder: Callable[..., Any], tmp_path: Path) -> TrainRecipe:
    refer_folder()
    png_folder()
    validation = {"parts": [{"dataset": "refcoco", "split": "testA"}], "every": 1}
    optimiser = {"lr": 1e-3, "decoder_first": 0.5}  # of four steps two: the moments lie in both phases
    return small_recipe(tmp_path, validation=validation, optimiser=optimiser)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_after(calls: int, method: str, recipe: TrainRecipe, out: Path, backbone: Any, *, before: bool) -> int:
    """A run whose process gets SIGKILL at the n-th call of a method, as it begins or as it ends."""

    def act() -> None:
        trainer = Trainer(recipe, out, backbone=backbone, progress=False)
        places = (trainer.checkpoints, trainer, trainer.accelerator)
        owner: Any = next(place for place in places if hasattr(place, method))
        real, seen = getattr(owner, method), 0

        def counting(*args: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == calls and before:
                die()
            result = real(*args, **options)
            if seen == calls:
                die()
            return result

        setattr(owner, method, counting)
        trainer.run()

    return forked(act)


def test_killed_at_random_moments_it_ends_with_the_same_bits(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    backbone = load_llava("mha")
    assert forked(lambda: run(recipe, tmp_path / "whole", backbone)) == 0
    dice = random.Random(os.getpid())  # another run of the tests tries other moments
    moments = [("backward", dice.randint(1, 4)), ("step", dice.randint(1, 3)), ("save_state", 1), ("finish", 1)]
    dice.shuffle(moments)
    for method, calls in moments:
        ended = killed_after(calls, method, recipe, tmp_path / "killed", backbone, before=dice.random() < 0.5)
        assert ended in (-signal.SIGKILL, 0), moments
    ended = forked(lambda: run(recipe, tmp_path / "killed", backbone))
    assert ended == 0, moments
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "killed")), moments
    assert (tmp_path / "killed" / "heads.safetensors").exists()
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["result"]["steps"] == 4


def test_a_finished_run_is_not_trained_again(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_llava("mha")
    first = run(recipe, tmp_path / "run", backbone)
    monkeypatch.setattr(Trainer, "step", None)
    again = run(recipe, tmp_path / "run", backbone)
    assert (again.steps, again.scores, again.best_score) == (first.steps, first.scores, first.best_score)


def test_another_recipe_does_not_go_on_in_the_folder(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    from dataclasses import replace

    backbone = load_llava("mha")
    run(replace(recipe, steps=1), tmp_path / "run", backbone)
    with pytest.raises(TrainingStopped, match=r"steps: 1, now 2.*--restart"):
        Trainer(replace(recipe, steps=2), tmp_path / "run", backbone=backbone)
    kept = replace(recipe, steps=1, saving=replace(recipe.saving, keep=5), bad_samples="stop")
    assert run(kept, tmp_path / "run", backbone).steps == 1
    assert run(replace(recipe, steps=2), tmp_path / "run", backbone, restart=True).steps == 2


def test_a_full_disk_leaves_the_last_good_checkpoint(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_llava("mha")
    real = Trainer._save

    def save(self: Trainer) -> None:
        if self.state.step < 4:
            return real(self)
        with no_file_grows_beyond(4096):
            return real(self)

    run(recipe, tmp_path / "whole", backbone)
    monkeypatch.setattr(Trainer, "_save", save)
    with pytest.raises(TrainingStopped, match=r"step 4 cannot be written.*step_00000002 is whole.*make room"):
        run(recipe, tmp_path / "run", backbone)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    run(recipe, tmp_path / "run", backbone)
    assert same_bits(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_only_the_newest_checkpoints_stay_and_parts_do_not_count(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    for step in (10, 20, 30):
        (checkpoints.begin(step) / "state").write_text(str(step))
        checkpoints.finish(step)
    (checkpoints.begin(40) / "state").write_text("half")
    assert checkpoints.steps() == [20, 30]
    newest = checkpoints.newest()
    assert newest is not None
    assert (newest / "state").read_text() == "30"
    assert not list(checkpoints.begin(40).iterdir())


def test_random_states_come_back(tmp_path: Path) -> None:
    import numpy as np
    import torch

    np.random.seed(3)
    torch.manual_seed(3)
    random.seed(3)
    random.gauss(0, 1)
    save_process(tmp_path, 0, {"processes": 1})

    def draws() -> list[float]:
        return [random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))]

    first = draws()
    assert draws() != first
    load_process(tmp_path, 0, 1)
    assert draws() == first
    states = random_states()
    set_random_states(states)
    (tmp_path / "process_0.pt").write_bytes(b"PK")
    with pytest.raises(BadCheckpoint, match="goes on from the one before"):
        load_process(tmp_path, 0, 1)


def newest(out: Path) -> Path:
    return sorted((out / "checkpoints").iterdir())[-1]


def damage(kind: str, folder: Path) -> None:
    victim = next(path for path in sorted(folder.iterdir()) if path.name.startswith("model"))
    if kind == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif kind == "cut optimiser":
        path = folder / "optimizer.bin"
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "missing":
        victim.unlink()
    elif kind == "no hashes":
        (folder / "sha256.json").write_text("[]")
    else:
        content = bytearray(victim.read_bytes())
        content[-5] ^= 4  # a number in a tensor: nothing but a hash can tell
        victim.write_bytes(content)


def test_damaged_checkpoints_are_told_from_whole_ones(tmp_path: Path) -> None:
    for kind in ("empty", "cut optimiser", "missing", "no hashes", "flipped"):
        checkpoints = Checkpoints(tmp_path / kind, keep=2)
        for step in (10, 20):
            folder = checkpoints.begin(step)
            for name in ("model.safetensors", "optimizer.bin", "process_0.pt"):
                (folder / name).write_bytes(bytes(200))
            checkpoints.finish(step)
        said: list[str] = []
        assert checkpoints.newest_whole(said.append) == checkpoints.at(20)
        assert not said
        damage(kind, checkpoints.at(20))
        assert checkpoints.newest_whole(said.append) == checkpoints.at(10), kind
        assert len(said) == 1
        assert "step_00000020 is damaged" in said[0]
        assert checkpoints.steps() == [10]
        damage(kind, checkpoints.at(10))
        with pytest.raises(BadCheckpoint, match=r"step_00000010.*--restart"):
            checkpoints.newest_whole(said.append)
        assert checkpoints.steps() == [10], "what may be mended stays"


def test_what_a_killed_run_left_is_mended_or_said(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    backbone = load_llava("mha")
    whole, out = tmp_path / "whole", tmp_path / "run"
    run(recipe, whole, backbone)
    assert killed_after(3, "step", recipe, out, backbone, before=False) == -signal.SIGKILL
    assert newest(out).name == "step_00000002"
    # A step that was logged and is done again, half a line, half a file, half a checkpoint.
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 1.0}\n{"step": 3, "lo')
    (out / ".heads.safetensors.abc.part").write_bytes(b"half")
    (out / "checkpoints" / "step_00000004.part").mkdir()
    run(recipe, out, backbone)
    assert same_bits(weights(whole), weights(out))
    assert not list(out.rglob("*.part"))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == sorted(set(steps))

    damage("flipped", newest(out))
    capsys.readouterr()
    again = run(recipe, out, backbone)
    assert "step_00000004 is damaged" in capsys.readouterr().err
    assert again.steps == 4
    assert same_bits(weights(whole), weights(out))

    for content in (b"", bytes(400), b"\xff\xfe", b"seed: [", b"- 1"):
        (out / "recipe.yaml").write_bytes(content)
        with pytest.raises(TrainingStopped, match=r"recipe\.yaml.*--restart"):
            Trainer(recipe, out, backbone=backbone, progress=False)


def test_a_folder_belongs_to_one_run_at_a_time(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    backbone, out = load_llava("mha"), tmp_path / "run"
    first = Trainer(recipe, out, backbone=backbone, progress=False)
    before = sorted(path.name for path in out.iterdir())
    for restart in (False, True):
        with pytest.raises(OutputFailed, match="another process writes to"):
            Trainer(recipe, out, backbone=backbone, restart=restart, progress=False)
    assert sorted(path.name for path in out.iterdir()) == before
    first.close()
    assert killed_after(1, "step", recipe, out, backbone, before=True) == -signal.SIGKILL
    assert run(recipe, out, backbone).steps == 4


@pytest.mark.parametrize("key", ["out", "cache"])
def test_a_place_that_takes_no_files_is_said_before_anything_is_loaded(
    recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    from dataclasses import replace

    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(Trainer, "_load", None)
    below = tmp_path / "taken" / "below"
    if key == "cache":
        recipe = replace(recipe, cache=replace(recipe.cache, folder=str(below)))
    with pytest.raises(OutputFailed, match="taken"):
        Trainer(recipe, below if key == "out" else tmp_path / "run", progress=False)


def test_a_folder_that_is_gone_is_not_made_anew_in_the_middle(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    real = Trainer.step

    def step(self: Trainer, *args: Any) -> Any:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return real(self, *args)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(TrainingStopped, match="is gone"):
        run(recipe, tmp_path / "run", load_llava("mha"))


def test_heads_that_are_shared_do_not_say_where_things_lay(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    from dataclasses import replace

    from flmm_plugin.heads import read_manifest

    root = Path(recipe.data.root or "")
    assert root.is_absolute()
    run(replace(recipe, steps=1), tmp_path / "run", load_llava("mha"))
    manifest = read_manifest(tmp_path / "run")
    assert str(tmp_path) not in manifest.to_json()
    assert manifest.notes["recipe"]["data"]["root"] == root.name
    assert len(manifest.notes["frozen"]) == 2
