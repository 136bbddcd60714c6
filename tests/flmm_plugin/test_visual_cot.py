"""The two looks, on tiny random models: what is grounded, what is cut out, what is asked."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_plugin.errors import EmptyPhrase, HeadsMismatch, UnknownArgument
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest
from flmm_plugin.passages import Passage
from flmm_plugin.records import parse_masks_json
from flmm_plugin.visual_cot import THINK, THOUGHT, CotQuestion, VisualCotOptions, crop_box

Load = Callable[..., Any]
QUESTION = "What color is the horse?"


@pytest.fixture(scope="module")
def lmm(load_llava: Load) -> GroundedLMM:
    backbone = copy.copy(load_llava("mha"))
    torch.manual_seed(0)
    decoder = {"base_channels": 4, "upsample_to": 16}
    manifest = HeadsManifest(backbone=backbone.name, layers=3, heads=4, hidden_size=64, decoder=decoder, sam=None)
    return GroundedLMM(backbone, GroundingHeads.build(manifest).eval())


@pytest.fixture
def shown(lmm: GroundedLMM, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """Chats and pictures of every call of the model's processor, in order."""
    seen: list[tuple[Any, Any]] = []
    encode = lmm.backbone.encode

    def watched(messages: Any, images: Any, **options: Any) -> Any:
        seen.append((messages, images))
        return encode(messages, images, **options)

    monkeypatch.setattr(lmm.backbone, "encode", watched)
    return seen


def words(chat: Any) -> str:
    return "".join(part.get("text", "<image>") for part in chat[-1]["content"])


def test_the_second_variant_grounds_the_question(lmm: GroundedLMM, noise_image: Load, shown: list[Any]) -> None:
    picture = noise_image()
    options = VisualCotOptions(variant="v2")
    answer = lmm.visual_cot(picture, QUESTION, instruction="\nShort.", options=options, max_new_tokens=4)
    (expected,) = lmm.ground_text(picture, QUESTION, QUESTION, [(0, len(QUESTION))], where="question", refine=False)
    assert answer.thought == QUESTION
    assert answer.grounding is not None
    assert np.array_equal(answer.grounding.mask, expected.mask)
    assert answer.crop == crop_box(expected.mask)
    (chat,), ((cut,),) = shown[1]
    assert words(chat) == f"<image>{QUESTION}\nShort."
    assert cut.size == (answer.crop[2] - answer.crop[0], answer.crop[3] - answer.crop[1])
    assert cut.tobytes() == picture.crop(answer.crop).tobytes()
    assert lmm.chat_batch([chat], [[cut]], max_new_tokens=4)[0].token_ids == answer.token_ids


def test_the_first_variant_grounds_what_the_model_names(lmm: GroundedLMM, noise_image: Load, shown: list[Any]) -> None:
    picture = noise_image(80, 90, 3)
    answer = lmm.visual_cot(picture, QUESTION, max_new_tokens=4)
    (chat,), _ = shown[0]
    assert words(chat) == f"<image>{QUESTION}{THINK}"
    # The same by hand: the forced beginning as given text, greedy, the words behind it grounded as an answer.
    backbone = lmm.backbone
    encoded = backbone.encode([chat], [[picture]])
    begun = backbone.tokenizer.encode(THOUGHT, add_special_tokens=False)
    generated = backbone.generate(encoded.extended([begun], backbone.pad_id), do_sample=False, max_new_tokens=16)
    ids = generated.answer_ids(0)
    texts = [backbone.tokenizer.decode(ids[: n + 1], skip_special_tokens=True) for n in range(len(ids))]
    stop = next((n for n, text in enumerate(texts) if "." in text), len(ids) - 1)
    assert answer.thought == texts[stop - 1].strip()
    assert answer.grounding is not None
    assert answer.grounding.mask.shape == (90, 80)
    tokens = encoded.image_tokens[0][0]
    from flmm_plugin.capture import read_sequence

    whole = encoded.extended([[*begun, *ids]], backbone.pad_id)
    slots = torch.arange(encoded.length + len(begun), encoded.length + len(begun) + stop)
    capture = read_sequence(backbone, whole, [slots], [tokens.slots])
    maps = backbone.attention_maps(capture.attention(0).mean(dim=0)[None], tokens)
    assert lmm.heads is not None
    out = lmm.heads(maps, [capture.hidden(0)], picture, tokens.grid, False)
    assert np.abs(out.logits[0].detach().numpy() - answer.grounding.logits).max() < 2e-3


def test_models_of_several_pictures_see_both(
    lmm: GroundedLMM, noise_image: Load, shown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = noise_image()
    monkeypatch.setattr(type(lmm.backbone), "several_images", True)
    answer = lmm.visual_cot(picture, QUESTION, options=VisualCotOptions(variant="v2"), max_new_tokens=2)
    (chat,), (pictures,) = shown[1]
    assert answer.views == "both"
    assert [one.size for one in pictures] == [picture.size, picture.crop(answer.crop).size]
    assert words(chat) == (
        "<image>the whole image, <image>the image region that might help you answer the question: " + QUESTION
    )
    alone = lmm.visual_cot(picture, QUESTION, options=VisualCotOptions("v2", views="crop"), max_new_tokens=2)
    assert alone.views == "crop"


@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_batches_answer_as_single_questions_do(lmm: GroundedLMM, noise_image: Load, variant: Any) -> None:
    asked = [
        CotQuestion(noise_image(90, 60, 1), "Where is the man?"),
        CotQuestion(noise_image(60, 90, 2), "What is in the image, on the left of the table?", "\nShort."),
    ]
    options = VisualCotOptions(variant)
    together = lmm.visual_cot_batch(asked, options, max_new_tokens=4)
    for one, answer in zip(asked, together, strict=True):
        alone = lmm.visual_cot_batch([one], options, max_new_tokens=4)[0]
        assert (answer.thought, answer.crop) == (alone.thought, alone.crop)
        assert answer.token_ids == alone.token_ids
    assert lmm.visual_cot_batch([], options) == []


def test_nothing_named_means_the_whole_picture(
    lmm: GroundedLMM, noise_image: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flmm_plugin import visual_cot

    monkeypatch.setattr(visual_cot, "_thought", lambda _, ids: Passage(ids, [], []))
    answer = lmm.visual_cot(noise_image(), QUESTION, max_new_tokens=2)
    assert (answer.grounding, answer.thought, answer.crop) == (None, "", (0, 0, 100, 60))
    assert parse_masks_json(answer.to_json((60, 100))).masks == ()


def test_a_second_look_changes_no_chat_and_no_weight(lmm: GroundedLMM, noise_image: Load) -> None:
    picture = noise_image()
    seal, before = lmm.seal, lmm.chat(picture, QUESTION, max_new_tokens=6)
    lmm.visual_cot(picture, QUESTION, max_new_tokens=2)
    assert lmm.chat(picture, QUESTION, max_new_tokens=6) == before
    seal.verify()


def test_the_reply_is_masks_json_with_the_thought(lmm: GroundedLMM, noise_image: Load) -> None:
    answer = lmm.visual_cot(noise_image(), QUESTION, options=VisualCotOptions("v2"), max_new_tokens=2)
    content = json.loads(answer.to_json((60, 100)))
    assert content["text"] == answer.text
    assert content["visual_cot"] == {
        "variant": "v2", "thought": QUESTION, "crop": list(answer.crop), "views": "crop",
    }  # fmt: skip
    assert parse_masks_json(json.dumps(content)).masks[0].shape == (60, 100)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_a_cut_is_inside_the_picture_and_has_pixels(height: int, width: int, data: st.DataObject) -> None:
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(data.draw(st.integers(0, 3))):
        mask[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    scale = data.draw(st.sampled_from([0.01, 0.5, 1.0, 1.5, 20.0]))
    x0, y0, x1, y1 = crop_box(mask, scale=scale)
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    if scale >= 1 and mask.any():
        ys, xs = np.nonzero(mask)
        assert x0 <= xs.min()
        assert y0 <= ys.min()
        # Without the + 1, the last row and column of a mask larger than the least side are left out, as released.
        assert x1 >= xs.max()
        assert y1 >= ys.max()


def test_small_masks_get_sixteen_pixels() -> None:
    mask = np.zeros((100, 200), dtype=bool)
    mask[50, 100] = True
    assert crop_box(mask) == (92, 42, 108, 58)
    mask[:] = False
    mask[99, 0] = True
    assert crop_box(mask) == (0, 91, 8, 100)


def test_what_cannot_be_asked_is_refused(lmm: GroundedLMM, noise_image: Load) -> None:
    with pytest.raises(EmptyPhrase, match="question 0 is empty"):
        lmm.visual_cot(noise_image(), " \n")
    with pytest.raises(HeadsMismatch, match="chat only"):
        GroundedLMM(lmm.backbone).visual_cot(noise_image(), QUESTION)
    for wrong in ({"variant": "v3"}, {"views": "all"}, {"box_scale": 0}):
        with pytest.raises(UnknownArgument, match="visual_cot"):
            VisualCotOptions(**wrong)  # type: ignore[arg-type]
