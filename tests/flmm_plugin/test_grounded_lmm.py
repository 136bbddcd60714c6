"""The whole of it on tiny random models: chat untouched, masks on the picture, clear refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flmm_plugin import grounded_lmm, softmax_rows
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.errors import (
    BadImage,
    BadText,
    CaptureError,
    EmptyPhrase,
    FrozenWeightsChanged,
    HeadsMismatch,
    UnknownArgument,
)
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import GroundingHeads, HeadsManifest, save_heads
from flmm_plugin.heads.manifest import PROMPT
from flmm_plugin.passages import GivenText, decoded_offsets
from flmm_plugin.visual_cot import VisualCotOptions

Load = Callable[..., Any]
SAM = {
    "image_size": 64,
    "patch_size": 16,
    "encoder_dim": 32,
    "depth": 1,
    "heads": 2,
    "prompt_dim": 32,
    "decoder_mlp_dim": 32,
    "decoder_heads": 2,
}
PHRASES = ["the brown horse", "a man", "the big blue table near the window"]


def make_heads(**changes: Any) -> GroundingHeads:
    facts: dict[str, Any] = {
        "backbone": "mha",
        "layers": 3,
        "heads": 4,
        "hidden_size": 64,
        "decoder": {"base_channels": 4, "upsample_to": 16},
        "sam": SAM,
        "keyword_selector": True,
    }
    torch.manual_seed(0)
    return GroundingHeads.build(HeadsManifest(**{**facts, **changes})).eval()


@pytest.fixture(scope="module")
def lmm(load_llava: Load) -> GroundedLMM:
    backbone = copy.copy(load_llava("mha"))
    backbone.name = "somewhere/mha"
    return GroundedLMM(backbone, make_heads())


def same(one: Any, two: Any, tolerance: float = 2e-3) -> bool:
    """Two groundings agree; random heads amplify the last digits of the attention."""
    return bool(np.abs(one.logits - two.logits).max() < tolerance) and one.phrase == two.phrase


# --- chat ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 40}, {"num_beams": 2}])
def test_grounded_chat_says_what_chat_says_and_chat_what_the_plain_model_says(
    lmm: GroundedLMM, noise_image: Load, options: dict[str, Any]
) -> None:
    image, model = noise_image(), lmm.backbone.model
    encoded = lmm.backbone.encode(
        [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]], [[image]]
    )
    torch.manual_seed(5)
    plain = model.generate(**encoded.inputs, max_new_tokens=10, pad_token_id=0, **options)[0, encoded.length :].tolist()
    torch.manual_seed(5)
    chatted = lmm.chat(image, "What?", max_new_tokens=10, **options)
    torch.manual_seed(5)
    grounded = lmm.grounded_chat(image, "What?", max_new_tokens=10, threshold=0.5, **options)
    assert list(chatted.token_ids) == plain
    assert (grounded.text, grounded.token_ids) == (chatted.text, chatted.token_ids)
    assert chatted.text == lmm.backbone.tokenizer.decode(plain, skip_special_tokens=True)


def test_batched_chat_answers_as_single_chat_does(lmm: GroundedLMM, noise_image: Load) -> None:
    questions, images = ["What?", "Where is the big blue table?"], [noise_image(seed=1), noise_image(seed=2)]
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}] for question in questions
    ]
    batch = lmm.chat_batch(chats, [[image] for image in images], max_new_tokens=5, do_sample=False)
    for answer, question, image in zip(batch, questions, images, strict=True):
        assert answer.token_ids == lmm.chat(image, question, max_new_tokens=5, do_sample=False).token_ids
    assert lmm.chat(None, "Without a picture?", max_new_tokens=2).token_ids


def test_grounded_chat_names_parts_of_its_text(lmm: GroundedLMM, noise_image: Load) -> None:
    image = noise_image(50, 70)
    everything = lmm.grounded_chat(image, "What?", max_new_tokens=12, threshold=-1.0, do_sample=False)
    assert len(everything.groundings) == 1  # every token is picked, the end token left out: one run
    assert everything.groundings[0].phrase == everything.text.strip()
    answer = lmm.grounded_chat(image, "What?", max_new_tokens=12, threshold=0.5, do_sample=False)
    for grounding in (*everything.groundings, *answer.groundings):
        assert grounding.span is not None
        assert grounding.phrase == answer.text[slice(*grounding.span)] == grounding.phrase.strip() != ""
        assert grounding.mask.shape == (70, 50)
    assert lmm.grounded_chat(image, "What?", max_new_tokens=12, threshold=1.0, do_sample=False).groundings == ()


def test_adjacent_picks_form_one_phrase(lmm: GroundedLMM, noise_image: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    picked = torch.tensor([0.0, 0.9, 0.8, 0.0, 0.9, 0.0, 0.0, 0.0])
    monkeypatch.setattr(lmm.heads.keyword_selector, "forward", lambda hidden: picked[: len(hidden)])  # type: ignore[union-attr]
    answer = lmm.grounded_chat(noise_image(), "What?", max_new_tokens=8, do_sample=False, eos_token_id=-1)
    text, offsets = decoded_offsets(lmm.backbone.tokenizer, answer.token_ids)
    expected = [text[offsets[1][0] : offsets[2][1]].strip(), text[slice(*offsets[4])].strip()]
    assert any(expected)
    assert [grounding.phrase for grounding in answer.groundings] == [words for words in expected if words]


def test_long_answers_are_read_twice_with_the_same_result(
    lmm: GroundedLMM, noise_image: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_new_tokens": 10, "threshold": 0.45, "do_sample": False}
    once = lmm.grounded_chat(noise_image(), "What?", **options)
    monkeypatch.setattr(grounded_lmm, "_ONE_PASS_BYTES", 0)
    twice = lmm.grounded_chat(noise_image(), "What?", **options)
    assert len(once.groundings) == len(twice.groundings) > 0
    assert all(same(one, two) for one, two in zip(once.groundings, twice.groundings, strict=True))


# --- grounding -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize(("width", "height"), [(100, 60), (33, 170)])
def test_masks_lie_on_the_original_picture(
    lmm: GroundedLMM, noise_image: Load, refine: bool, width: int, height: int
) -> None:
    found = lmm.ground(noise_image(width, height), PHRASES, refine=refine)
    assert [grounding.phrase for grounding in found] == PHRASES
    for grounding in found:
        assert grounding.mask.shape == grounding.logits.shape == grounding.decoder_logits.shape == (height, width)
        assert np.array_equal(grounding.mask, grounding.logits > 0)
        assert np.array_equal(grounding.logits, grounding.decoder_logits) == (not refine)
        assert grounding.span is None


def test_maps_are_the_mean_of_eager_attention_over_the_phrase(
    lmm: GroundedLMM, load_llava: Load, noise_image: Load
) -> None:
    """From the ids on, without any of the code under test: prompt, phrase alone, and eager's own attentions."""
    image, phrase = noise_image(), PHRASES[2]
    backbone = load_llava("mha", attn_implementation="eager")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]
    text = backbone.processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = backbone.processor(images=[image], text=[text], return_tensors="pt")
    words = torch.tensor([backbone.tokenizer.encode(phrase, add_special_tokens=False)])
    ids = torch.cat([inputs["input_ids"], words], dim=1)
    with torch.no_grad():
        out = backbone.model(input_ids=ids, pixel_values=inputs["pixel_values"], output_attentions=True)
    image_columns = (ids[0] == backbone.image_token_id).nonzero().flatten()
    rows = torch.stack(out.attentions)[:, 0, :, -words.shape[1] :][..., image_columns]
    for merge, expected in (("mean", rows.mean(dim=2)), ("max", rows.amax(dim=2))):
        maps = GroundedLMM(lmm.backbone, merge=merge).attention_maps(image, phrase)
        assert maps.maps.shape == (3, 4, 4, 4)
        assert np.abs(maps.maps - expected.reshape(3, 4, 4, 4).numpy()).max() < 1e-5
        assert (maps.grid.image_height, maps.grid.image_width) == (60, 100)


def test_separate_phrases_do_not_see_each_other(lmm: GroundedLMM, noise_image: Load) -> None:
    image = noise_image()
    alone = [lmm.ground(image, [phrase])[0] for phrase in PHRASES]
    apart = lmm.ground(image, PHRASES, joint=False)
    joint = lmm.ground(image, PHRASES)
    assert all(same(one, two) for one, two in zip(alone, apart, strict=True))
    # Nothing stands before the first phrase.
    assert np.abs(joint[0].decoder_logits - alone[0].decoder_logits).max() < 2e-3
    assert not np.array_equal(joint[2].decoder_logits, alone[2].decoder_logits)


def test_batches_give_what_single_pictures_give(lmm: GroundedLMM, noise_image: Load) -> None:
    images = [noise_image(seed=1), noise_image(40, 90, seed=2), noise_image(seed=3), noise_image(64, 64, seed=4)]
    phrases = [PHRASES, PHRASES[:1], [], PHRASES[1:]]
    batch = lmm.ground_many(images, phrases, batch_size=2)
    assert [len(found) for found in batch] == [3, 1, 0, 2]
    for found, image, some in zip(batch, images, phrases, strict=True):
        if some:
            assert all(same(one, two) for one, two in zip(found, lmm.ground(image, some), strict=True))


def test_one_look_at_the_picture_however_many_phrases(
    lmm: GroundedLMM, noise_image: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    tower = lmm.backbone.model.model.vision_tower
    refiner = lmm.heads.mask_refiner  # type: ignore[union-attr]
    hooks = [
        tower.register_forward_hook(lambda *args: looks.append("tower")),
        refiner.sam.image_encoder.register_forward_hook(lambda *args: looks.append("sam")),
    ]
    most: list[int] = []
    scores = softmax_rows.scores

    def watched(query: Any, key: Any, scaling: Any) -> Any:
        most.append(query.shape[1])
        return scores(query, key, scaling)

    monkeypatch.setattr(softmax_rows, "scores", watched)
    many = [f"thing {index}" for index in range(9)]
    for seed, joint in ((21, True), (22, False)):
        looks.clear()
        assert len(lmm.ground(noise_image(seed=seed), many, joint=joint)) == 9
        assert sorted(looks) == ["sam", "tower"]
    for hook in hooks:
        hook.remove()
    tokens = sum(len(lmm.backbone.tokenizer.encode(phrase, add_special_tokens=False)) for phrase in many)
    layers = lmm.backbone.model.config.text_config.num_hidden_layers
    assert sum(most) == 2 * layers * tokens  # rows of the phrases' tokens, never of the prompt or the picture


def test_one_picture_given_several_times_is_read_once(lmm: GroundedLMM, noise_image: Load) -> None:
    one, other = noise_image(), noise_image(seed=5)
    phrases = [["a man"], ["a brown horse"], ["a man", "a hat"], ["the sky"], ["grass"]]
    looks: list[str] = []
    hook = lmm.backbone.model.model.vision_tower.register_forward_hook(lambda *args: looks.append("tower"))
    found = lmm.ground_many([one, one, one, other, one], phrases, batch_size=1)
    hook.remove()
    assert len(looks) == 3  # of one picture the three single phrases together, its list of two, the other picture
    for image, some, groundings in zip([one, one, one, other, one], phrases, found, strict=True):
        assert all(same(left, right) for left, right in zip(groundings, lmm.ground(image, some), strict=True))
        (alone,) = lmm.ground_many([image], [some], batch_size=1)
        for left, right in zip(groundings, alone, strict=True):
            assert np.array_equal(left.logits, right.logits)  # to the last bit: processes share a split as they like


def test_spans_of_a_given_answer(lmm: GroundedLMM, noise_image: Load) -> None:
    image, text = noise_image(), "a man rides a brown horse."
    found = lmm.ground_text(image, "What?", text, [(0, 5), (12, 26), (14, 25)])
    assert [(one.phrase, one.span) for one in found] == [
        ("a man", (0, 5)),
        ("a brown horse.", (12, 26)),
        ("brown horse", (14, 25)),
    ]
    again = lmm.ground_text(image, "What?", text, [(14, 25)], refine=False)[0]
    assert np.abs(again.logits - found[2].decoder_logits).max() < 2e-3
    assert lmm.ground_text(image, "What?", text, []) == []


def test_spans_of_the_question(lmm: GroundedLMM, noise_image: Load) -> None:
    image, text = noise_image(), "Where is the brown horse?"
    found = lmm.ground_text(image, text, text, [(13, 24)], where="question")[0]
    assert (found.phrase, found.span) == ("brown horse", (13, 24))
    other = lmm.ground_text(image, text, text, [(0, 5)], where="question")[0]
    assert not np.array_equal(found.decoder_logits, other.decoder_logits)
    with pytest.raises(EmptyPhrase, match="does not contain"):
        lmm.ground_text(image, text, "Elsewhere?", [(0, 3)], where="question")


# --- loading and proof ---------------------------------------------------------------------------------------------


def test_from_pretrained_with_a_heads_file(
    llava_folders: dict[str, Path], tmp_path: Path, lmm: GroundedLMM, noise_image: Load
) -> None:
    path = tmp_path / "heads.safetensors"
    folder = llava_folders["mha"]
    save_heads(path, make_heads(backbone=folder.name))
    loaded = GroundedLMM.from_pretrained(folder, path, device="cpu")
    for one, two in zip(loaded.ground(noise_image(), PHRASES), lmm.ground(noise_image(), PHRASES), strict=True):
        assert same(one, two)


def test_the_seal_holds_through_everything_and_breaks_with_a_weight(
    llava_folders: dict[str, Path], noise_image: Load
) -> None:
    folder = llava_folders["mha"]
    lmm = GroundedLMM.from_pretrained(folder, make_heads(backbone=folder.name), device="cpu")
    seal = lmm.seal
    lmm.chat(noise_image(), "What?", max_new_tokens=2)
    lmm.grounded_chat(noise_image(), "What?", max_new_tokens=4, threshold=0.0)
    lmm.ground(noise_image(), PHRASES, joint=False)
    seal.verify()
    assert lmm.seal is seal
    name = "model.language_model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        dict(lmm.backbone.model.named_parameters())[name][0, 0] += 1
    with pytest.raises(FrozenWeightsChanged, match=r"layers\.1\.mlp\.up_proj\.weight"):
        lmm.seal.verify()


def test_weights_that_changed_before_sealing_are_noticed(llava_folders: dict[str, Path]) -> None:
    lmm = GroundedLMM.from_pretrained(llava_folders["mha"], None, device="cpu")
    with torch.no_grad():
        lmm.backbone.model.lm_head.weight.mul_(1.01)
    with pytest.raises(FrozenWeightsChanged, match="between loading and sealing"):
        _ = lmm.seal


def test_no_gradients_and_no_grad_mode_left_behind(lmm: GroundedLMM, noise_image: Load) -> None:
    lmm.ground(noise_image(), PHRASES[:1])
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in lmm.backbone.model.parameters())


# --- refusals ------------------------------------------------------------------------------------------------------


def test_heads_that_do_not_fit_are_refused(load_llava: Load) -> None:
    with pytest.raises(HeadsMismatch, match="expect 16 attention maps"):
        GroundedLMM(load_llava("mha"), make_heads(layers=4))
    with pytest.raises(UnknownArgument, match="'median'"):
        GroundedLMM(load_llava("mha"), merge="median")


def test_chat_only_models_say_so(llava_folders: dict[str, Path], noise_image: Load) -> None:
    folder = llava_folders["mha"]
    with pytest.raises(HeadsMismatch, match="flmm train"):
        GroundedLMM.from_pretrained(folder, device="cpu").ground(noise_image(), PHRASES)
    with pytest.raises(UnknownArgument, match="did you mean 'sam_checkpoint'"):
        GroundedLMM.from_pretrained(EMBEDDED, sam_checkpont="x")
    lmm = GroundedLMM.from_pretrained(folder, None, device="cpu")
    assert lmm.chat(noise_image(), "What?", max_new_tokens=2).token_ids
    for call in (
        lambda: lmm.ground(noise_image(), PHRASES),
        lambda: lmm.ground(noise_image(), PHRASES, joint=False),
        lambda: lmm.ground_text(noise_image(), "What?", "a man", [(0, 5)]),
        lambda: lmm.grounded_chat(noise_image(), "What?"),
    ):
        with pytest.raises(HeadsMismatch, match="chat only"):
            call()


def test_heads_without_a_selector_cannot_pick(load_llava: Load, noise_image: Load) -> None:
    backbone = copy.copy(load_llava("mha"))
    backbone.name = "mha"
    with pytest.raises(HeadsMismatch, match="selector"):
        GroundedLMM(backbone, make_heads(keyword_selector=False, sam=None)).grounded_chat(noise_image(), "What?")


@pytest.mark.parametrize("joint", [True, False])
def test_bad_phrases_and_pictures_are_refused(lmm: GroundedLMM, noise_image: Load, joint: bool) -> None:
    with pytest.raises(EmptyPhrase, match="one string"):
        lmm.ground(noise_image(), "the horse", joint=joint)
    with pytest.raises(EmptyPhrase, match="is empty"):
        lmm.ground(noise_image(), ["the horse", " "], joint=joint)
    with pytest.raises(BadImage):
        lmm.ground(b"no picture", PHRASES, joint=joint)
    assert lmm.ground(noise_image(), [], joint=joint) == []
    with pytest.raises(EmptyPhrase, match="lists of phrases"):
        lmm.ground_many([noise_image()], [])


def test_attention_that_is_not_finite_is_refused(
    lmm: GroundedLMM, noise_image: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = softmax_rows.scores
    monkeypatch.setattr(softmax_rows, "scores", lambda *args: scores(*args) * float("nan"))
    with pytest.raises(CaptureError, match="bfloat16"):
        lmm.ground(noise_image(), PHRASES)


# --- given words that are no words, or too many --------------------------------------------------------------------


def test_signs_and_any_iterable_are_grounded_as_text(lmm: GroundedLMM, noise_image: Load) -> None:
    image = noise_image()
    for joint in (True, False):
        found = lmm.ground(image, (one for one in ["<image>", "a </s> man"]), joint=joint)
        assert [one.phrase for one in found] == ["<image>", "a </s> man"]
    [found] = lmm.ground_text(image, "What is it?", "a <image> red circle", np.array([[2, 9]]))
    assert (found.phrase, found.span) == ("<image>", (2, 9))


LONG = "man " * 3000  # under the bound on characters: found by the number of tokens


@pytest.mark.parametrize("text", [LONG, "man " * 25_000], ids=["tokens", "characters"])
def test_nothing_longer_than_the_context_runs(
    lmm: GroundedLMM, noise_image: Load, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def runs(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model runs")

    monkeypatch.setattr(lmm.backbone, "forward_body", runs)
    monkeypatch.setattr(lmm.backbone, "generate", runs)
    image, one = noise_image(), GivenText(noise_image(), "What is it?", (text,), (0,))
    calls: list[Callable[[], Any]] = [
        lambda: lmm.ground(image, [text]),
        lambda: lmm.ground(image, [text], joint=False),
        lambda: lmm.ground(image, ["a man"], prompt=text),
        lambda: lmm.ground_many([image, image], [["a man"], [text]], batch_size=1),
        lambda: lmm.ground_text(image, "What is it?", text, [(0, 3)]),
        lambda: lmm.ground_text(image, text, text, [(0, 3)], where="question"),
        lambda: lmm.grounded_chat(image, text),
        lambda: lmm.visual_cot(image, text),
        lambda: lmm.visual_cot(image, text, options=VisualCotOptions("v2")),
        lambda: lmm.attention_maps(image, text),
        lambda: lmm.ground_answer(image, text),
        lambda: lmm.ground_pieces([one]),
        lambda: lmm.select_keywords([one]),
    ]
    for call in calls:
        with pytest.raises(BadText, match="2048 tokens"):
            call()


def test_an_answer_beyond_the_context_is_not_grounded(lmm: GroundedLMM, noise_image: Load) -> None:
    chat: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "man"}]}]
    words = 2048 - lmm.backbone.encode([chat], [[noise_image()]]).length
    with pytest.raises(BadText, match="2048 tokens"):
        lmm.grounded_chat(noise_image(), "man" + " man" * words, max_new_tokens=4, min_new_tokens=4)


def test_spans_are_those_of_the_text_also_in_a_question(lmm: GroundedLMM, noise_image: Load) -> None:
    """The span before the text was a place in the chat, and was grounded."""
    for spans in ([(-1, 3)], [(0, 99)], [("a", "b")], [(0.5, 2)]):
        for where, messages in (("answer", "What?"), ("question", "a man")):
            with pytest.raises(BadText, match="span"):
                lmm.ground_text(noise_image(), messages, "a man", spans, where=where)  # type: ignore[arg-type]


def test_other_arguments_are_what_they_say(lmm: GroundedLMM, noise_image: Load) -> None:
    image: Any = noise_image()
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: lmm.ground_text(image, "a", "a", [(0, 1)], where="nowhere"), UnknownArgument, "where"),  # type: ignore[arg-type]
        (lambda: lmm.ground_many([image], [["a"]], batch_size=0), UnknownArgument, "batch_size"),
        (lambda: lmm.ground(image, ["a"], prompt=5), BadText, "prompt"),  # type: ignore[arg-type]
        (lambda: lmm.ground(image, ["a"], prompt="\ud800"), BadText, "surrogate"),
        (lambda: lmm.chat(image, "\ud800"), BadText, "surrogate"),
        (lambda: lmm.ground_text(image, "a", None, [(0, 1)]), BadText, "NoneType"),  # type: ignore[arg-type]
    ]
    for call, error, word in calls:
        with pytest.raises(error, match=word):
            call()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I", "F"])
def test_chat_about_a_picture_of_any_mode_is_the_stock_processor_s(
    lmm: GroundedLMM, noise_image: Load, mode: str
) -> None:
    """Only grounding may refuse a mode; what a harness hands over is chatted about as the stock model does."""
    picture = noise_image(40, 30).convert(mode)
    options = {"max_new_tokens": 6, "do_sample": False}
    stock = lmm.chat(picture.convert("RGB"), "What is it?", **options)
    assert lmm.chat(picture, "What is it?", **options).token_ids == stock.token_ids
    if mode in "IF":
        with pytest.raises(BadImage, match=f"mode {mode}"):
            lmm.ground(picture, ["dog"])
