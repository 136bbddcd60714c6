"""MGM against its parts, put together here in the plainest way: ConvNeXt, CLIP, loops over patches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from flmm_plugin.backbones import load_backbone
from flmm_plugin.backbones.mgm import config as mgm_config
from flmm_plugin.backbones.mgm.backbone import TEMPLATES, SquareLook
from flmm_plugin.errors import BackboneUnsupported, BadCheckpoint

from .mgm_family import Parts, save_mgm
from .test_conformance import noise, user

Load = Callable[..., Any]
VARIANTS = {"mgm_llama": {}, "mgm_gemma": {"gemma": True}, "mgm_hd": {"hd": True}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Parts]]:
    """``written(variant)``: a repository and the parts that it was written from."""
    made: dict[str, tuple[Path, Parts]] = {}

    def get(name: str) -> tuple[Path, Parts]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, save_mgm(folder, **VARIANTS[name])
        return made[name]

    return get


def mined(parts: Parts, low: Tensor, cells: Tensor) -> Tensor:
    """Patches ``[k, d]`` of one view and ConvNeXt cells ``[e, S, S]`` over it, patch by patch."""
    side = int(len(low) ** 0.5)
    step = cells.shape[-1] // side
    rows = []
    for index, patch in enumerate(low):
        top, left = index // side * step, index % side * step
        inside = cells[:, top : top + step, left : left + step].flatten(1).T
        scores = parts.key(inside) @ parts.query(patch) / len(patch) ** 0.5
        rows.append(patch + scores.softmax(0) @ parts.value(inside))
    return torch.stack(rows)


def expected_features(parts: Parts, large: Tensor, grid: int) -> Tensor:
    """What the language model is shown of one picture ``[3, S, S]``, by the paper's description."""

    def bilinear(image: Tensor, side: int) -> Tensor:
        return F.interpolate(image, size=(side, side), mode="bilinear", align_corners=False)

    def clip(view: Tensor) -> Tensor:
        return parts.clip(view, output_hidden_states=True).hidden_states[-2][0, 1:]

    state, stages = parts.convnext.stem(large[None]), []
    for stage in parts.convnext.stages:
        state = stage(state)
        stages.append(state)
    cells = torch.cat([bilinear(one, stages[0].shape[-1]) for one in stages], dim=1)[0]
    side = mgm_config.CLIP_TOWERS["tiny-clip"]["image_size"]
    canvas = bilinear(large[None], side * grid)
    quarter = cells.shape[-1] // grid
    pieces = [
        mined(
            parts,
            clip(canvas[:, :, side * row : side * (row + 1), side * column : side * (column + 1)]),
            cells[:, quarter * row : quarter * (row + 1), quarter * column : quarter * (column + 1)],
        )
        for row in range(grid)
        for column in range(grid)
    ]
    if grid > 1:
        pieces.insert(0, mined(parts, clip(bilinear(canvas, side)), bilinear(cells[None], quarter)[0]))
    return parts.projector(torch.cat(pieces))


@pytest.mark.parametrize("name", VARIANTS)
def test_features_and_logits_are_those_of_the_parts(name: str, written: Callable[[str], tuple[Path, Parts]]) -> None:
    folder, parts = written(name)
    backbone = load_backbone(folder, device="cpu")
    picture = noise(100, 60, 1)
    inputs = backbone.encode([user("What is in the image?")], [[picture]]).inputs
    expected = expected_features(parts, inputs["high_res_pixel_values"][0], 2 if name == "mgm_hd" else 1)
    # Gemma multiplies all that it is given by the root of its hidden size. Versions of transformers differ in where:
    # the first layer is where all must have come.
    scale = 32**0.5 if name == "mgm_gemma" else 1.0
    seen: list[Tensor] = []
    hook = backbone.decoder.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    backbone.forward_body(inputs)
    hook.remove()
    found = seen[0][0][inputs["input_ids"][0] == backbone.image_token_id]
    torch.testing.assert_close(found, expected * scale, rtol=1e-4, atol=2e-5)

    words = backbone.processor(text="the dog and the cat", add_special_tokens=True)
    assert torch.equal(backbone.model(**words).logits, parts.language_model(**words).logits)


def test_every_stored_tensor_is_used(written: Callable[[str], tuple[Path, Parts]]) -> None:
    """By value: each one is somewhere in the model, and nothing else is."""
    folder, parts = written("mgm_llama")
    ours = load_backbone(folder, device="cpu").model.state_dict()
    stored = parts.published()
    assert len(ours) == len(stored)
    fingerprints = sorted((tuple(value.shape), float(value.double().sum())) for value in ours.values())
    assert fingerprints == sorted((tuple(value.shape), float(value.double().sum())) for value in stored.values())


@pytest.mark.slow
def test_the_parts_convnext_is_timms(written: Callable[[str], tuple[Path, Parts]]) -> None:
    """Same names, same numbers: what the towers in the published shards were saved from."""
    convnext = pytest.importorskip("timm.models.convnext")
    ours = written("mgm_llama")[1].convnext
    numbers = mgm_config.CONVNEXT_TOWERS["tiny-convnext"]
    theirs = convnext.ConvNeXt(depths=numbers["depths"], dims=numbers["hidden_sizes"], num_classes=0).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith("head.") for name in missing)
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.stages(ours.stem(pixels)), theirs.stages(theirs.stem(pixels)))


def damaged(folder: Path, to: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """A copy of a repository with other tensors, in one shard as small ones are."""
    copy = Path(shutil.copytree(folder, to / "copy"))
    tensors = {key: value for shard in sorted(copy.glob("*.safetensors")) for key, value in load_file(shard).items()}
    change(tensors)
    for path in [*copy.glob("*.safetensors"), copy / "model.safetensors.index.json"]:
        path.unlink()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.vlm_uni_val_projector.1.bias"), r"lack 1 tensors \(model\.mining\.value\.1\.bias\)"),
        (lambda t: t.update({"model.vision_fpn.0.weight": torch.zeros(2)}), r"hold 1 .*vision_fpn.*belong to no part"),
        (lambda t: t.update({"model.mm_projector.0.bias": torch.zeros(7)}), r"another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Any, message: str, written: Callable[[str], tuple[Path, Parts]], tmp_path: Path
) -> None:
    with pytest.raises(BadCheckpoint, match=message):
        load_backbone(damaged(written("mgm_llama")[0], tmp_path, change), device="cpu")


def test_tables_that_older_versions_stored_are_no_strangers(
    written: Callable[[str], tuple[Path, Parts]], tmp_path: Path
) -> None:
    tables = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(145)[None],
    }
    folder = damaged(written("mgm_llama")[0], tmp_path, lambda tensors: tensors.update(tables))
    assert load_backbone(folder, device="cpu").family == "mgm"


def test_device_map_places_it(written: Callable[[str], tuple[Path, Parts]]) -> None:
    folder, _ = written("mgm_llama")
    split, plain = load_backbone(folder, device_map={"": "cpu"}), load_backbone(folder, device="cpu")
    encoded = plain.encode([user("Where?")], [[noise(60, 100, 2)]])
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(split.generate(encoded, **options).sequences, plain.generate(encoded, **options).sequences)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_vision_tower": "x/clip-vit-huge"}, r"mm_vision_tower 'clip-vit-huge'; known: clip-vit-large-patch14-336"),
        ({"mm_projector_type": "linear"}, r"mm_projector_type='linear'; only 'mlp2x_gelu'"),
        ({"image_aspect_ratio": "anyres"}, r"image_aspect_ratio='anyres'"),
        ({"image_size_aux": 100}, r"not a multiple of 4 \* 12 patches"),
    ],
)
def test_configurations_that_are_not_built_are_refused(
    change: dict[str, Any], message: str, written: Callable[[str], tuple[Path, Parts]]
) -> None:
    published = json.loads((written("mgm_llama")[0] / "config.json").read_text())
    with pytest.raises(BackboneUnsupported, match=message):
        mgm_config.mgm_config({**published, **change}, "x/y")


def test_the_published_sizes_are_those_of_the_paper() -> None:
    """MGM-7B-HD's configuration, as far as it is known: 576 + 4 * 576 tokens."""
    published = {
        "model_type": "mgm", "mm_vision_tower": "model_zoo/OpenAI/clip-vit-large-patch14-336", "image_size_aux": 1536,
        "mm_vision_tower_aux": "a/openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup", "image_grid": 2,
        "image_global": True, "vocab_size": 32000, "hidden_size": 4096, "num_hidden_layers": 32,
    }  # fmt: skip
    config = mgm_config.mgm_config(published, "MGM-7B-HD")
    look = SquareLook(config.vision_config.image_size, config.image_size_aux, config.image_grid, config.image_global)
    seen = look(noise(64, 48, 0))
    assert seen["pixel_values"].shape == (5, 3, 336, 336)
    assert seen["high_res_pixel_values"].shape == (3, 1536, 1536)
    assert config.image_token_id == 32000
    assert sum(config.aux_config["hidden_sizes"]) == 2880


def test_conversations_are_the_authors(load_family: Load) -> None:
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    vicuna = load_family("mgm_llama")
    assert vicuna.render(user("What?")) == f"{system} USER: <image>\nWhat? ASSISTANT:"
    talk = [*user("What?"), {"role": "assistant", "content": "A dog."}, {"role": "user", "content": "Where?"}]
    assert vicuna.render(talk) == f"{system} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: Where? ASSISTANT:"
    assert vicuna.render([{"role": "system", "content": "Be brief."}, *user("What?")]).startswith("Be brief. USER:")
    # As the heads were trained: no system sentence.
    bare = vicuna.render([{"role": "system", "content": ""}, *user("What?")])
    assert bare == "USER: <image>\nWhat? ASSISTANT:"
    gemma = load_family("mgm_gemma").render(talk)
    assert gemma == (
        "<start_of_turn>user\n<image>\nWhat?<end_of_turn>\n<start_of_turn>model\nA dog.<end_of_turn>\n<eos>"
        "<start_of_turn>user\nWhere?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert set(TEMPLATES) == set(mgm_config.LANGUAGE_MODELS.values())


def test_the_placeholder_is_beyond_the_vocabulary_and_words_are_tokenised_as_without(load_family: Load) -> None:
    backbone = load_family("mgm_llama")
    vocabulary = backbone.model.get_input_embeddings().weight.shape[0]
    assert backbone.image_token_id == vocabulary == backbone.model.lm_head.weight.shape[0]
    ids = backbone.encode([user("a dog")], [[noise(40, 30, 0)]]).item_ids(0)
    before, after = backbone.render(user("a dog")).split("<image>")
    tokenizer = backbone.tokenizer
    assert ids == [
        *tokenizer(before)["input_ids"],
        *[vocabulary] * 144,
        *tokenizer(after, add_special_tokens=False)["input_ids"],
    ]


def test_a_picture_is_padded_before_it_is_resized() -> None:
    look = SquareLook(168, 96, 1, False)
    large = look.normalised(noise(100, 50, 3))
    # A quarter of the height above and below is CLIP's mean colour, to within a grey level.
    assert large[:, :22].abs().max() < 0.02
    assert large[:, -22:].abs().max() < 0.02
    assert large[:, 30:-30].abs().max() > 0.5
