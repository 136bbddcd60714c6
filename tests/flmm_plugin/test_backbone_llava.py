"""LLaVA through its own processor: the same inputs as stock transformers, slots and grids that fit, clear refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlamaConfig

from flmm_plugin.backbones import load_backbone
from flmm_plugin.errors import BackboneUnsupported, BadCheckpoint, BadImage, UnknownArgument
from flmm_plugin.geometry import ImageGrid

Load = Callable[..., Any]


def user(text: str, images: int = 1) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


def test_facts_and_frozen_weights(load_llava: Load) -> None:
    backbone = load_llava("gqa")
    assert (backbone.family, backbone.num_layers, backbone.num_heads, backbone.hidden_size) == ("llava", 3, 4, 64)
    assert backbone.facts.attention_maps == 12
    assert (backbone.device.type, backbone.output_device.type, backbone.dtype) == ("cpu", "cpu", torch.float32)
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_inputs_and_answers_are_those_of_plain_transformers(
    llava_folders: dict[str, Path], load_llava: Load, noise_image: Load
) -> None:
    """Nothing of this package in the other arm: model and processor straight from the folder."""
    folder = llava_folders["pad"]
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    chats = [user("What is in the image?"), user("Where is the big blue table, on the left of the window?")]
    images = [noise_image(seed=1), noise_image(90, 200, seed=2)]
    texts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    stock = processor(images=images, text=texts, padding=True, return_tensors="pt")
    expected = model.eval().generate(**stock, max_new_tokens=8, do_sample=False)

    backbone = load_llava("pad")
    encoded = backbone.encode(chats, [[image] for image in images])
    assert encoded.inputs.keys() == stock.keys()
    assert all(torch.equal(encoded.inputs[key], stock[key]) for key in stock)
    generated = backbone.generate(encoded, max_new_tokens=8, do_sample=False)
    assert torch.equal(generated.sequences, expected)
    assert generated.answer_ids(1) == expected[1, encoded.length :][: generated.lengths[1]].tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mha", ImageGrid.from_center_crop(60, 100, 56, 14)),
        ("pad", ImageGrid.from_pad_then_resize(60, 100, 56, 14)),
        ("squash", ImageGrid.from_squash(60, 100, 56, 56, 14)),
    ],
)
def test_the_grid_follows_the_processor_that_came_with_the_model(
    load_llava: Load, noise_image: Load, name: str, expected: ImageGrid
) -> None:
    encoded = load_llava(name).encode([user("What?")], [[noise_image(100, 60)]])
    assert encoded.image_tokens[0][0].grid == expected


def test_slots_of_several_images_in_a_padded_batch(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    chats = [user("What?"), user("Which of the two?", images=2), user("Nothing to see.", images=0)]
    pictures = [[noise_image(seed=1)], [noise_image(seed=2), noise_image(60, 100, seed=3)], []]
    encoded = backbone.encode(chats, pictures)
    assert [len(tokens) for tokens in encoded.image_tokens] == [1, 2, 0]
    for item, tokens in enumerate(encoded.image_tokens):
        slots = torch.cat([one.slots for one in tokens]) if tokens else torch.tensor([], dtype=torch.long)
        is_image = encoded.inputs["input_ids"][item] == backbone.image_token_id
        assert torch.equal(slots, is_image.nonzero().flatten())
    first, second = encoded.image_tokens[1]
    assert (first.grid.image_width, second.grid.image_width) == (100, 60)
    assert int(first.slots.max()) < int(second.slots.min())


def test_a_tower_that_keeps_its_class_token(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    inputs = {
        "pixel_values": torch.zeros(1, 3, 56, 56),
        "input_ids": torch.tensor([[1, *[backbone.image_token_id] * 17, 9]]),
    }
    with pytest.raises(BackboneUnsupported, match="17 image tokens where 16"):
        backbone.image_tokens(inputs, [[noise_image()]])
    processor = backbone.processor
    try:
        processor.vision_feature_select_strategy = "full"
        tokens = backbone.image_tokens(inputs, [[noise_image()]])
    finally:
        processor.vision_feature_select_strategy = "default"
    assert tokens[0][0].slots.tolist() == list(range(2, 18))


def test_a_processor_that_does_not_do_what_it_says_is_refused(load_llava: Load) -> None:
    with pytest.raises(BackboneUnsupported, match="misplaced"):
        load_llava("mha").grid(60, 100, (56, 70))


def test_extending_is_encoding_with_the_words_behind(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    chats = [user("What is in the image?"), user("Where?")]
    encoded = backbone.encode(chats, [[noise_image(seed=1)], [noise_image(seed=2)]])
    answers = [[70, 71], [80, 81, 82, 83, 84]]
    longer = encoded.extended(answers, backbone.pad_id)
    for item, answer in enumerate(answers):
        assert longer.item_ids(item) == encoded.item_ids(item) + answer
        assert longer.inputs["input_ids"][item, -len(answer) :].tolist() == answer
        before, after = encoded.image_tokens[item][0], longer.image_tokens[item][0]
        ids = longer.inputs["input_ids"][item]
        assert bool((ids[after.slots] == backbone.image_token_id).all())
        assert len(after.slots) == len(before.slots)
    lengths = [len(longer.item_ids(item)) for item in range(2)]
    assert longer.length == max(lengths)  # no slot more than the longest needs
    assert longer.inputs["attention_mask"].sum(1).tolist() == lengths
    assert longer.inputs["pixel_values"] is encoded.inputs["pixel_values"]


def test_the_system_prompt_is_put_first_and_only_where_there_is_none(llava_folders: dict[str, Path]) -> None:
    backbone = load_backbone(llava_folders["mha"], device="cpu", system_prompt="Be brief.")
    assert backbone.render(user("What?")).startswith("SYSTEM: Be brief. USER: <image>")
    assert backbone.render([{"role": "user", "content": "What?"}]).startswith("SYSTEM: Be brief. USER: What?")
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "What?"}]
    assert backbone.render(own) == "SYSTEM: Mine. USER: What? ASSISTANT:"


def test_a_template_that_writes_the_first_token_does_not_get_two(
    llava_folders: dict[str, Path], noise_image: Load
) -> None:
    backbone = load_backbone(llava_folders["mha"], device="cpu")
    once = backbone.encode([user("What?")], [[noise_image()]]).item_ids(0)
    backbone.processor.chat_template = "{{ bos_token }}" + backbone.processor.chat_template
    assert backbone.encode([user("What?")], [[noise_image()]]).item_ids(0) == once
    assert once.count(backbone.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(("places", "given"), [(1, 0), (1, 2), (0, 1)])
def test_places_and_images_must_match(load_llava: Load, noise_image: Load, places: int, given: int) -> None:
    with pytest.raises(BadImage, match=f"chat 0 has {places} places for images and {given}"):
        load_llava("mha").encode([user("What?", images=places)], [[noise_image()] * given])


def test_answer_lengths(load_llava: Load, noise_image: Load) -> None:
    backbone = load_llava("mha")
    encoded = backbone.encode([user("What?"), user("Where is it?")], [[noise_image(seed=1)], [noise_image(seed=2)]])
    free = backbone.generate(encoded, max_new_tokens=8, do_sample=False, eos_token_id=-1)
    assert free.lengths == (8, 8)
    stop = free.answer_ids(0)[3]  # let the first chat end early
    ended = backbone.generate(encoded, max_new_tokens=8, do_sample=False, eos_token_id=stop)
    first = free.answer_ids(0).index(stop)
    assert ended.answer_ids(0) == free.answer_ids(0)[: first + 1]
    pad = backbone.pad_id  # as a word of the answer, not as padding
    others = [token for token in range(backbone.model.config.text_config.vocab_size) if token != pad]
    padded = backbone.generate(encoded, max_new_tokens=3, do_sample=False, eos_token_id=-1, suppress_tokens=others)
    assert [padded.answer_ids(item) for item in (0, 1)] == [[pad] * 3] * 2
    assert backbone.generate(encoded, max_new_tokens=4, num_beams=2, do_sample=False).past_key_values is None
    with pytest.raises(UnknownArgument, match="num_return_sequences"):
        backbone.generate(encoded, max_new_tokens=2, num_return_sequences=2, num_beams=2)


# --- loading -------------------------------------------------------------------------------------------------------


def test_unknown_arguments_and_names_are_refused_with_the_nearest(llava_folders: dict[str, Path]) -> None:
    folder = llava_folders["mha"]
    with pytest.raises(UnknownArgument, match="did you mean 'attn_implementation'"):
        load_backbone(folder, attn_implementaton="sdpa")
    with pytest.raises(UnknownArgument, match="known: revision"):
        load_backbone(folder, zzz=1)
    with pytest.raises(UnknownArgument, match="did you mean 'bfloat16'"):
        load_backbone(folder, dtype="bfloat_16")
    with pytest.raises(UnknownArgument, match="device or device_map"):
        load_backbone(folder, device="cpu", device_map="auto")
    with pytest.raises(UnknownArgument, match="did you mean 'flmm_tiny'"):
        load_backbone("flm_tiny")


def test_what_is_no_supported_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneUnsupported, match=r"config\.json"):
        load_backbone(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(BackboneUnsupported, match=r"'llama' model, .*implemented families: .*llava"):
        load_backbone(tmp_path)


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def test_damaged_weights_are_refused(llava_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(llava_folders["mha"], tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BadCheckpoint, match="damaged"):
        load_backbone(folder, device="cpu")


def test_missing_weights_are_refused_not_invented(llava_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(llava_folders["mha"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"lack \d+ tensors.*layers\.3"):
        load_backbone(folder, device="cpu")


def test_weights_of_another_shape_are_refused(llava_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(llava_folders["mha"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] //= 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match="another shape"):
        load_backbone(folder, device="cpu")


def test_a_model_without_a_chat_template_is_refused(llava_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_of(llava_folders["mha"], tmp_path)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BackboneUnsupported, match="no chat template"):
        load_backbone(folder, device="cpu")


def test_device_map_splits_the_model(llava_folders: dict[str, Path], load_llava: Load, noise_image: Load) -> None:
    pytest.importorskip("accelerate")
    backbone = load_backbone(llava_folders["gqa"], device_map={"": "cpu"}, dtype="bfloat16")
    assert backbone.dtype == torch.bfloat16
    encoded = backbone.encode([user("What?")], [[noise_image()]])
    assert encoded.inputs["pixel_values"].dtype == torch.bfloat16
    plain = load_llava("gqa", dtype="bfloat16")
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(backbone.generate(encoded, **options).sequences, plain.generate(encoded, **options).sequences)
