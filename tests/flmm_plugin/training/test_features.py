"""What is read of the frozen models is what the finished heads are asked with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers.normalizers import Lowercase

from flmm_plugin.backbones import load_backbone
from flmm_plugin.errors import BadImage, CaptureError, EmptyPhrase, HeadsMismatch
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.images import open_image
from flmm_plugin.passages import GivenText, text_offsets
from flmm_plugin.records import Grounding
from flmm_plugin.training.features import FrozenFeatures, FrozenReader

from .frozen import Samples, frozen_lmm


@pytest.fixture(scope="module")
def lmm(load_llava: Callable[..., Any]) -> GroundedLMM:
    return frozen_lmm(load_llava("mha"))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(tmp_path_factory.mktemp("pictures"))


def logits(lmm: GroundedLMM, features: FrozenFeatures) -> torch.Tensor:
    assert lmm.heads is not None
    assert features.embedding is not None
    with torch.no_grad():
        found: torch.Tensor = lmm.heads(features.attention, features.hidden, features.embedding, features.grid).logits
    return found


def stacked(found: list[Grounding]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(one.logits) for one in found])


def test_expressions_are_read_as_ground_reads_them(lmm: GroundedLMM, samples: Samples) -> None:
    sample = samples.expressions()
    found = logits(lmm, FrozenReader(lmm).read(sample))
    asked = lmm.ground(sample.image_path, list(sample.phrases), prompt=sample.prompt)
    assert torch.equal(found, stacked(asked))


def test_narratives_are_read_as_given_texts_are(lmm: GroundedLMM, samples: Samples) -> None:
    sample = samples.narrative()
    found = logits(lmm, FrozenReader(lmm).read(sample))
    [asked] = lmm.ground_pieces([GivenText(sample.image_path, sample.prompt, sample.pieces, sample.grounded)])
    assert torch.equal(found, stacked(asked))


def test_phrases_in_questions_are_read_as_ground_text_reads_them(lmm: GroundedLMM, samples: Samples) -> None:
    sample = samples.question()
    found = logits(lmm, FrozenReader(lmm).read(sample))
    asked = lmm.ground_text(sample.image_path, sample.prompt, sample.prompt, sample.spans, where="question")
    assert torch.equal(found, stacked(asked))
    answer = samples.expressions(pieces=("the big table", ";"), grounded=(0,), prompt=sample.prompt)
    assert not torch.equal(found, logits(lmm, FrozenReader(lmm).read(answer)))
    with pytest.raises(EmptyPhrase):
        FrozenReader(lmm).read(samples.question(pieces=("What is in ", "another text", "?")))


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(("There is", " a man", " near", " the big table", "."), id="one pass: the pieces' tokens"),
        pytest.param(("There is a ", "man", " near the big ", "table."), id="a pass of its own"),
    ],
)
def test_the_selector_learns_from_the_text_that_it_will_be_asked_about(
    lmm: GroundedLMM, samples: Samples, pieces: tuple[str, ...]
) -> None:
    sample = samples.narrative(pieces=pieces)
    features = FrozenReader(lmm).read(sample)
    assert lmm.heads is not None
    selector = lmm.heads.keyword_selector
    assert selector is not None
    assert features.selector_hidden is not None
    assert features.selector_labels is not None
    ids, offsets = text_offsets(lmm.backbone.tokenizer, sample.text)
    same = ids == sample.passage(lmm.backbone.tokenizer).ids
    assert same == (pieces[0] == "There is")
    assert features.selector_hidden.shape == (len(ids), 64)
    # Labels, character by character.
    inside = {at for start, end in sample.spans for at in range(start, end)}
    assert features.selector_labels.tolist() == [bool(inside & set(range(*span))) for span in offsets]
    assert 0 < int(features.selector_labels.sum()) < len(ids)
    # The states, through the scores that asking gives.
    with torch.no_grad():
        scores = selector(features.selector_hidden)
    middle = float(scores.median())
    [keywords] = lmm.select_keywords([GivenText(sample.image_path, sample.prompt, pieces)], threshold=middle)
    runs = selector.select(scores, middle)
    assert [one.phrase for one in keywords] == [
        sample.text[offsets[start][0] : offsets[end - 1][1]].strip() for start, end in runs
    ]


def test_shapes_and_that_lists_have_no_keywords(lmm: GroundedLMM, samples: Samples) -> None:
    features = FrozenReader(lmm).read(samples.expressions())
    assert features.attention.shape == (2, 12, 4, 4)
    assert features.attention.dtype == torch.float32
    assert all(0 <= float(one) <= 1 for one in features.attention.sum(dim=(-2, -1)).flatten())
    assert [one.shape[1:] for one in features.hidden] == [(3, 64)] * 2
    assert (features.grid.image_height, features.grid.image_width) == (40, 60)
    assert features.embedding is not None
    assert features.embedding.features.shape == (1, 16, 8, 8)
    assert features.selector_hidden is None
    assert features.selector_labels is None
    assert not features.attention.requires_grad


def test_without_a_refiner_sam_is_not_asked(load_llava: Callable[..., Any], samples: Samples) -> None:
    reader = FrozenReader(frozen_lmm(load_llava("mha"), sam=None))
    assert reader.read(samples.expressions()).embedding is None
    assert reader.picture_identity() is None


def test_autocast_of_a_trainer_does_not_reach_the_frozen_models(lmm: GroundedLMM, samples: Samples) -> None:
    reader, sample = FrozenReader(lmm), samples.narrative()
    plain = reader.read(sample)
    assert lmm.heads is not None
    assert lmm.heads.mask_refiner is not None
    lmm.heads.mask_refiner.clear_cache()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = reader.read(sample)
    assert torch.equal(found.attention, plain.attention)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.hidden, plain.hidden, strict=True))
    assert plain.embedding is not None
    assert found.embedding is not None
    assert torch.equal(found.embedding.features, plain.embedding.features)


def test_rounding_keeps_masks_and_is_stable(lmm: GroundedLMM, samples: Samples) -> None:
    features = FrozenReader(lmm).read(samples.narrative())
    once = features.rounded()
    assert not torch.equal(once.attention, features.attention)
    assert torch.equal(once.rounded().attention, once.attention)
    torch.testing.assert_close(once.attention, features.attention, rtol=2**-11, atol=0)
    torch.testing.assert_close(logits(lmm, once), logits(lmm, features), rtol=1e-2, atol=1e-2)


def test_max_merging_is_read_as_it_is_asked(load_llava: Callable[..., Any], samples: Samples) -> None:
    mean, largest = (FrozenReader(frozen_lmm(load_llava("mha"), merge=merge)) for merge in ("mean", "max"))
    sample = samples.narrative()
    assert bool((largest.read(sample).attention >= mean.read(sample).attention).all())
    assert largest.words_identity() != mean.words_identity()


def test_what_cannot_be_read_is_named(lmm: GroundedLMM, samples: Samples, tmp_path: Path) -> None:
    reader = FrozenReader(lmm)
    with pytest.raises(EmptyPhrase, match="train/0"):
        reader.read(samples.narrative(grounded=(), keywords=False))
    with pytest.raises(EmptyPhrase):
        reader.read(samples.expressions(pieces=("a man", "; ", " ", ";")))
    with pytest.raises(BadImage):
        reader.read(samples.narrative(image_loader=lambda: open_image(tmp_path / "none.png")))
    with pytest.raises(HeadsMismatch, match="chat only"):
        FrozenReader(GroundedLMM(lmm.backbone, None))


def test_attention_that_is_not_finite_is_an_error(lmm: GroundedLMM, samples: Samples) -> None:
    norm = lmm.backbone.decoder.norm.weight
    kept = norm.detach().clone()
    try:
        norm.data.fill_(float("nan"))
        with pytest.raises(CaptureError, match=r"png/train/0.*not finite"):
            FrozenReader(lmm).read(samples.narrative())
    finally:
        norm.data.copy_(kept)


def test_identities_say_what_features_depend_on(lmm: GroundedLMM, load_llava: Callable[..., Any]) -> None:
    reader = FrozenReader(lmm)
    words, picture = reader.words_identity(), reader.picture_identity()
    assert words == FrozenReader(frozen_lmm(load_llava("mha"))).words_identity()
    assert picture == FrozenReader(frozen_lmm(load_llava("gqa"))).picture_identity()
    assert words["backbone"] == "mha"  # not where it lies
    others = [
        frozen_lmm(load_llava("gqa")),
        frozen_lmm(load_llava("squash")),
        frozen_lmm(load_llava("mha"), template="{image} {prompt}"),
        frozen_lmm(load_llava("mha", attn_implementation="eager")),
    ]
    found = [FrozenReader(one).words_identity() for one in others]
    assert all(one != words for one in found)
    assert len({str(one) for one in found}) == len(found)
    assert lmm.heads is not None
    assert lmm.heads.mask_refiner is not None
    weight = next(lmm.heads.mask_refiner.sam.image_encoder.parameters())
    kept = weight.detach().clone()
    try:
        weight.data.add_(1.0)
        assert reader.picture_identity() != picture
        assert reader.words_identity() == words
    finally:
        weight.data.copy_(kept)


def test_a_picture_loaded_elsewhere_is_used_once(lmm: GroundedLMM, samples: Samples) -> None:
    """The loader is asked once per reading: decoding is the dearest part of small models."""
    asked: list[int] = []
    path = samples.picture(0)

    def loader() -> Image.Image:
        asked.append(1)
        return open_image(path)

    FrozenReader(lmm).read(samples.narrative(image_loader=loader))
    assert len(asked) == 1


def test_one_changed_number_setting_or_rule_is_another_identity(llava_folders: dict[str, Path]) -> None:
    """Replaced under the same path and name: content alone tells them apart."""

    def load() -> Any:
        return load_backbone(llava_folders["mha"], device="cpu")

    before = FrozenReader(frozen_lmm(load())).words_identity()
    used = load()
    used.tokenizer(["one", "two words"], padding=True)
    assert FrozenReader(frozen_lmm(used)).words_identity() == before
    weight, setting, rule = load(), load(), load()
    with torch.no_grad():
        largest = max(weight.model.parameters(), key=lambda one: one.numel())
        largest.view(-1)[largest.numel() // 2 + 1] += 1  # a value that no sample of values would meet
    setting.model.config.text_config.rms_norm_eps *= 2
    rule.tokenizer.backend_tokenizer.normalizer = Lowercase()
    for changed in (weight, setting, rule):
        assert FrozenReader(frozen_lmm(changed)).words_identity() != before
