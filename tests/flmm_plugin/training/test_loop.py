"""What a run does with data that cannot be used, when it stops, what it proves and what it leaves."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flmm_plugin.errors import FrozenWeightsChanged, TrainingStopped
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.training.batches import BAD_LOSS, EMPTY_MASK, EMPTY_PHRASE, NO_MASK, Preparer
from flmm_plugin.training.loop import Trainer, decoder_steps, learning_rate
from flmm_plugin.training.losses import HeadsLoss, Prepared, bce_loss, dice_loss
from flmm_plugin.training.recipe import DataPart, OptimiserRecipe, TrainRecipe
from flmm_plugin.training.samples import TrainingSet, without_empty
from flmm_plugin.training.validation import ValidationReport

from .frozen import Samples, frozen_lmm
from .runs import run, small_recipe


@pytest.fixture
def recipe(refer_folder: Callable[..., Any], png_folder: Callable[..., Any], tmp_path: Path) -> TrainRecipe:
    refer_folder()
    png_folder()
    return small_recipe(tmp_path, max_bad_share=0.5)


@pytest.fixture
def samples(tmp_path: Path) -> Samples:
    return Samples(tmp_path)


def preparer(backbone: Any, **options: Any) -> Preparer:
    from flmm_plugin.training.features import FrozenReader

    return Preparer(FrozenReader(frozen_lmm(backbone)), backbone.tokenizer, "cpu", **options)


# --- samples that cannot be used -----------------------------------------------------------------------------------


def test_an_empty_phrase_goes_from_its_list_and_is_named(load_llava: Callable[..., Any], samples: Samples) -> None:
    reader = preparer(load_llava("mha"))
    masks = [np.zeros((40, 60), bool) for _ in range(3)]
    for number, mask in enumerate(masks):
        mask[number, number] = True
    sample = samples.expressions(
        pieces=("a dog", "; ", "  ", "; ", "the cat", ";"), grounded=(0, 2, 4), mask_loader=lambda: masks
    )
    found = reader.prepare(sample)
    assert found is not None
    assert found.phrases == ("a dog", "the cat")
    assert torch.equal(found.masks, torch.from_numpy(np.stack([masks[0], masks[2]])))
    assert len(found.features.hidden) == 2
    assert [(one.kind, one.where) for one in reader.problems] == [(EMPTY_PHRASE, f"{sample.key} ('  ')")]
    reader.prepare(sample)
    assert len(reader.problems) == 1, "counted once, however often it comes by"
    lone, gone = without_empty(replace(sample, pieces=(" ",), grounded=(0,)), load_llava("mha").tokenizer)
    assert (lone, gone) == (None, (" ",))


def test_of_a_narrative_an_empty_phrase_goes_and_the_text_stays(
    load_llava: Callable[..., Any], samples: Samples
) -> None:
    sample = samples.narrative(pieces=("a dog", " ", "and a cat"), grounded=(0, 1))
    left, gone = without_empty(sample, load_llava("mha").tokenizer)
    assert left is not None
    assert (left.text, left.phrases, gone, len(left.masks())) == (sample.text, ("a dog",), (" ",), 1)


def test_empty_masks_are_left_out_and_named(load_llava: Callable[..., Any], samples: Samples) -> None:
    empty, full = np.zeros((40, 60), bool), np.ones((40, 60), bool)
    reader = preparer(load_llava("mha"))
    found = reader.prepare(samples.expressions(mask_loader=lambda: [empty, full]))
    assert found is not None
    assert (found.phrases, len(found.masks), len(found.features.attention)) == (("the red sofa",), 1, 1)
    assert reader.prepare(samples.expressions(1, mask_loader=lambda: [empty, empty])) is None
    assert reader.counts == {EMPTY_MASK: 3, NO_MASK: 1}


def test_masks_of_another_size_and_missing_pictures_are_named(load_llava: Callable[..., Any], samples: Samples) -> None:
    reader = preparer(load_llava("mha"))
    assert reader.prepare(samples.expressions(mask_loader=lambda: [np.ones((40, 61), bool)] * 2)) is None
    gone = samples.folder / "gone.png"

    def load() -> Any:
        from flmm_plugin.images import open_image

        return open_image(gone)

    assert reader.prepare(replace(samples.narrative(2), image_loader=load)) is None
    heard = reader.new_problems()
    assert not reader.new_problems(), "each is returned once"
    assert [one.kind for one in heard] == ["annotation cannot be used", "picture cannot be read"]
    assert "40 x 61" in heard[0].where
    assert "gone.png" in heard[1].where
    strict = preparer(load_llava("mha"), stop=True)
    with pytest.raises(TrainingStopped, match=r"refcoco/train/0.*bad_samples=skip"):
        strict.prepare(samples.expressions(mask_loader=lambda: [np.ones((40, 61), bool)] * 2))


def test_a_run_over_damaged_data_names_it_and_goes_on(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "coco" / "train2014" / "COCO_train2014_000000000012.jpg").write_bytes(b"no picture")
    instances = tmp_path / "coco" / "refcoco" / "instances.json"
    content = json.loads(instances.read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]  # a line: its mask is empty
    instances.write_text(json.dumps(content))
    ended = run(recipe, tmp_path / "run", load_llava("mha"))
    assert ended.problems == {"picture cannot be read": 1, EMPTY_MASK: 1}
    named = [json.loads(line) for line in (tmp_path / "run" / "problems.jsonl").read_text().splitlines()]
    kinds = [one["kind"] for one in named]
    assert kinds.count("picture cannot be read") == 1
    assert "object without a usable polygon; its target is empty" in kinds, "what the reader found odd"
    with pytest.raises(TrainingStopped, match="bad_samples=skip"):
        run(replace(recipe, bad_samples="stop"), tmp_path / "strict", load_llava("mha"))


def test_too_much_that_cannot_be_used_ends_a_run(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    for path in (tmp_path / "coco" / "train2014").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainingStopped, match=r"2 of the 4 samples.*max_bad_share=0.1.*problems.jsonl"):
        run(replace(recipe, max_bad_share=0.1), tmp_path / "run", load_llava("mha"))


def test_a_loss_that_is_not_finite_is_named_and_costs_its_sample_alone(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = HeadsLoss.losses

    def losses(self: HeadsLoss, sample: Prepared, decoder_alone: bool) -> Tensor:
        found = real(self, sample, decoder_alone)
        return found * float("nan") if sample.key == "refcoco/val/11" else found

    monkeypatch.setattr(HeadsLoss, "losses", losses)
    ended = run(recipe, tmp_path / "run", load_llava("mha"))
    assert ended.problems == {BAD_LOSS: 1}
    strict = replace(recipe, bad_samples="stop")
    with pytest.raises(TrainingStopped, match="refcoco/val/11"):
        run(strict, tmp_path / "strict", load_llava("mha"))


def test_steps_without_a_gradient_end_a_run(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flmm_plugin.training.loop._BAD_IN_A_ROW", 2)
    monkeypatch.setattr(
        HeadsLoss,
        "losses",
        lambda self, sample, decoder_alone: torch.full((5,), float("nan")) * self.heads.text_layer_weights.sum(),
    )
    trainer = Trainer(recipe, tmp_path / "run", backbone=load_llava("mha"), progress=False)
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", lambda parameters, clip: torch.tensor(float("inf")))
    with pytest.raises(TrainingStopped, match=r"2 steps in a row.*precision=fp32"):
        trainer.run()


def test_no_sample_at_all(recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path) -> None:
    refs = tmp_path / "coco" / "refcoco" / "refs(unc).p"
    refs.write_bytes(pickle.dumps([], protocol=2))
    only = replace(recipe, data=replace(recipe.data, parts=recipe.data.parts[:1]))
    with pytest.raises(TrainingStopped, match=r"data\.parts"):
        Trainer(only, tmp_path / "run", backbone=load_llava("mha"))


# --- stopping, proving, leaving ------------------------------------------------------------------------------------


def test_validation_keeps_the_best_and_patience_ends_a_run(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = replace(recipe.validation, parts=recipe.data.parts[:1], every=0.5, patience=2, pictures=1)
    scores = iter([0.3, 0.5, 0.4, 0.2, 0.9])
    from flmm_plugin.training import loop

    real = loop.Scores.of_counts
    monkeypatch.setattr(
        loop.Scores, "of_counts", classmethod(lambda cls, counts: replace(real(counts), ciou=next(scores)))
    )
    reports: list[ValidationReport] = []
    patient = replace(recipe, validation=validation, epochs=3)
    ended = run(patient, tmp_path / "run", load_llava("mha"), on_validation=reports.append)
    assert [report.best for report in reports] == [True, True, False, False]
    assert (ended.steps, ended.best_step, ended.best_score, ended.stopped_early) == (4, 2, 0.5, True)
    assert [len(report.shown) for report in reports] == [1, 1, 1, 1]
    assert reports[0].shown[0].found[0].mask.shape == reports[0].shown[0].targets[0].shape
    from flmm_plugin.heads import read_manifest

    assert read_manifest(tmp_path / "run").notes["step"] == 2
    assert read_manifest(tmp_path / "run" / "last.safetensors").notes["step"] == 4
    assert run(patient, tmp_path / "run", load_llava("mha")).steps == 4, "it stays stopped"


def test_tensorboard_gets_the_curves(recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'flmm-plugin[train]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    validation = replace(recipe.validation, parts=recipe.data.parts[:1], every=1)
    ended = run(
        replace(recipe, trackers=("auto",), epochs=1, validation=validation), tmp_path / "run", load_llava("mha")
    )
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "flmm-train"))
    events.Reload()
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(logged) if "loss" in line)
    assert [(one.step, round(one.value, 4)) for one in events.Scalars("loss")] == [(2, round(last["loss"], 4))]
    assert ended.scores is not None
    assert events.Scalars("validation/ciou")[0].value == pytest.approx(ended.scores.ciou)


def test_trained_heads_go_straight_into_the_model(
    recipe: TrainRecipe,
    load_llava: Callable[..., Any],
    llava_folders: dict[str, Path],
    tmp_path: Path,
    noise_image: Any,
) -> None:
    run(replace(recipe, steps=1), tmp_path / "run", load_llava("mha"))
    lmm = GroundedLMM.from_pretrained(llava_folders["mha"], heads=tmp_path / "run", device="cpu")
    found = lmm.ground(noise_image(), ["a dog"])
    assert found[0].mask.shape == (60, 100)
    assert lmm.heads is not None
    manifest = lmm.heads.manifest
    assert (manifest.separator, manifest.keyword_selector, manifest.created_by[:10]) == (";", True, "flmm train")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["samples"] == 4
    assert len(record["frozen"]) == 2


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_a_frozen_weight_that_moves_is_caught(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path, part: str
) -> None:
    trainer = Trainer(replace(recipe, steps=1), tmp_path / "run", backbone=load_llava("mha"), progress=False)
    assert trainer.lmm.heads is not None
    refiner = trainer.lmm.heads.mask_refiner
    assert refiner is not None
    frozen = trainer.lmm.backbone.decoder if part == "decoder" else refiner.sam.image_encoder
    weight = next(frozen.parameters())
    kept = weight.detach().clone()
    real = trainer.step

    def step(batch: Any) -> dict[str, float]:
        with torch.no_grad():
            weight.add_(1.0)
        return real(batch)

    trainer.step = step  # type: ignore[method-assign]
    try:
        with pytest.raises(FrozenWeightsChanged):
            trainer.run()
    finally:
        with torch.no_grad():
            weight.copy_(kept)  # the backbone is shared by all tests


# --- the mask decoder first, questions, controls -------------------------------------------------------------------


def test_in_the_first_phase_only_the_mask_decoder_learns(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    decoder_first = replace(recipe, optimiser=replace(recipe.optimiser, decoder_first=0.5, decoder_lr=2e-3))
    trainer = Trainer(decoder_first, tmp_path / "run", backbone=load_llava("mha"), progress=False)
    model = trainer.accelerator.unwrap_model(trainer.model)
    moved: list[set[str]] = []
    for batch in trainer.batches.after(0):
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        lines = trainer.step(batch)
        moved.append({name for name, one in model.named_parameters() if not torch.equal(one, before[name])})
        assert (lines["refiner_bce"] == 0) == (len(moved) <= 2)
    trainer.close()
    assert len(moved) == 4
    assert all(name.startswith("heads.mask_decoder.") for name in moved[0] | moved[1])
    for part in ("heads.mask_decoder.", "heads.mask_refiner.", "heads.keyword_selector."):
        assert any(name.startswith(part) for name in moved[2] | moved[3])


def test_both_phases_have_the_whole_schedule() -> None:
    optimiser = OptimiserRecipe(lr=1.0, warmup=0.1, decoder_first=0.5, decoder_lr=2.0)
    rates = [learning_rate(optimiser, step, 40) for step in range(40)]
    assert decoder_steps(optimiser, 40) == 20
    assert [round(rates[step], 6) for step in (0, 1, 20, 21)] == [1.0, 2.0, 0.5, 1.0]
    assert rates[19] < 0.02 > rates[39]
    assert learning_rate(replace(optimiser, decoder_lr=None), 1, 40) == 1.0


def test_questions_hold_one_expression_each(recipe: TrainRecipe) -> None:
    part = DataPart("refcoco", "val", questions=("Where is the {}?", "Is the {} red?"))
    lists = TrainingSet(recipe, [DataPart("refcoco", "val")])
    asked = TrainingSet(recipe, [part])
    assert len(asked) == lists.phrases
    assert [one.phrases[0] for one in asked] == [phrase for one in lists for phrase in one.phrases]
    masks = [mask for one in lists for mask in one.masks()]
    for sample, mask in zip(asked, masks, strict=True):
        assert sample.text == sample.prompt
        assert sample.text in {one.replace("{}", sample.phrases[0]) for one in part.questions}
        assert np.array_equal(sample.masks()[0], mask)
    assert len({one.content for one in asked}) == len(asked)


def test_singular_phrases_name_one_thing(recipe: TrainRecipe) -> None:
    everything = TrainingSet(recipe, [DataPart("png", "val")])
    single = TrainingSet(recipe, [DataPart("png", "val", singular=True)])
    assert [one.phrases for one in everything] == [("a brown cat", "another", "two cats", "grass"), ("Green grass",)]
    assert [one.phrases for one in single] == [("a brown cat", "another")]
    assert single[0].text == everything[0].text
    assert len(single[0].masks()) == 2
    assert np.array_equal(single[0].masks()[1], everything[0].masks()[1])
    assert everything[0].keywords
    assert not single[0].keywords, "the selector would learn that grass is no word to choose"


def test_the_random_control_reads_other_weights(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    shared = load_llava("mha")
    kept = {name: tensor.clone() for name, tensor in shared.model.state_dict().items()}
    try:
        run(replace(recipe, steps=1, control="random"), tmp_path / "random", shared)
        assert not torch.equal(kept["lm_head.weight"], shared.model.state_dict()["lm_head.weight"])
    finally:
        shared.model.load_state_dict(kept)
    run(replace(recipe, steps=1), tmp_path / "real", shared)
    frozen = [json.loads((tmp_path / name / "run.json").read_text())["frozen"] for name in ("random", "real")]
    assert frozen[0][0] != frozen[1][0]
    assert frozen[0][1] == frozen[1][1], "SAM is the same"


def test_the_image_only_control_sees_nothing_of_the_model(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    blind = replace(recipe, control="image_only")
    trainer = Trainer(blind, tmp_path / "run", backbone=load_llava("mha"), progress=False)
    for batch in trainer.batches.after(0):
        for sample in batch.samples:
            assert not sample.features.attention.any()
            assert not any(one.any() for one in sample.features.hidden)
            assert sample.features.embedding is not None
            assert sample.features.embedding.features.any()
    assert trainer.run().steps == 4


# --- losses --------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    logits, target = torch.tensor([[0.0, 0.0], [100.0, -100.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(bce_loss(logits, target)) == pytest.approx(np.log(2) / 2)
    # First mask: 1 - (2 * 0.5 + 1) / (1 + 1 + 1) = 1/3; second: 1 - (2 + 1) / (1 + 1 + 1) = 0.
    assert float(dice_loss(logits, target)) == pytest.approx(1 / 6)


def test_every_parameter_that_learns_gets_a_gradient_and_no_other(
    recipe: TrainRecipe, load_llava: Callable[..., Any], tmp_path: Path
) -> None:
    trainer = Trainer(replace(recipe, batch_size=4), tmp_path / "run", backbone=load_llava("mha"), progress=False)
    model = trainer.accelerator.unwrap_model(trainer.model)
    batch = trainer.batches.read(trainer.batches.of_step(0)).samples
    losses, _ = model(batch, anchored=False)
    losses.sum().backward()
    without = {name for name, one in model.named_parameters() if one.requires_grad and one.grad is None}
    assert not without
    frozen = {name for name, one in model.named_parameters() if not one.requires_grad}
    assert all("point_embeddings" in n or "not_a_point" in n or "no_mask" in n or "iou_" in n for n in frozen)
    assert not any("image_encoder" in name for name, _ in model.named_parameters())
