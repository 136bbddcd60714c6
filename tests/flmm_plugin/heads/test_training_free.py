"""Methods without training: their names, the SAM they take, what they prompt it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from flmm_plugin.errors import BadCheckpoint, UnknownArgument
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import BackboneFacts, GroundingHeads, build_sam, read_manifest, save_heads
from flmm_plugin.heads.training_free import NAMES, Method, TrainingFreeHeads, load_training_free, method_of

FACTS = BackboneFacts("tests/tiny-lmm", 2, 3, 8)
GRID = ImageGrid.from_squash(24, 32, 32, 32, 4)


def attention(row: int = 2, column: int = 5) -> torch.Tensor:
    """One phrase, ``[1, 6, 8, 8]``, that looks at one cell."""
    maps = torch.full((1, 6, 8, 8), 0.001)
    maps[..., row, column] = 1
    return maps


@pytest.fixture
def heads_file(make_heads: Callable[..., GroundingHeads], tmp_path: Path) -> Path:
    path = tmp_path / "trained.safetensors"
    save_heads(path, make_heads(prompt="Look.", separator=";"))
    return path


def test_names_are_told_from_files(tmp_path: Path) -> None:
    assert [str(method_of(name)) for name in NAMES] == list(NAMES)
    assert method_of("localization-heads:17+23+4") == Method("localization-heads", (17, 23, 4))
    assert str(method_of("localization-heads:17+23+4")) == "localization-heads:17+23+4"
    for other in ("auto", "heads.safetensors", "runs/attention/heads.safetensors"):
        assert method_of(other) is None
    (tmp_path / "attention-argma").mkdir()
    assert method_of(str(tmp_path / "attention-argma")) is None


@pytest.mark.parametrize("wrong", ["attention_argmax", "Localization-Heads", "attend-and-segments"])
def test_a_near_name_is_corrected(wrong: str) -> None:
    with pytest.raises(UnknownArgument, match=f"did you mean '{wrong.lower().replace('_', '-').rstrip('s')}"):
        method_of(wrong)


@pytest.mark.parametrize("wrong", ["localization-heads:", "localization-heads:1,2", "attention-argmax:3"])
def test_maps_are_numbers_and_belong_to_one_method(wrong: str) -> None:
    with pytest.raises(UnknownArgument, match="only localization-heads takes"):
        method_of(wrong)


def test_sam_and_the_way_of_asking_come_from_shipped_heads(heads_file: Path) -> None:
    heads = load_training_free(Method("attend-and-segment"), FACTS, own_sam=heads_file, like=read_manifest(heads_file))
    assert (heads.manifest.prompt, heads.manifest.separator) == ("Look.", ";")
    assert heads.mask_refiner is not None
    assert heads.manifest.sam_prompts == {"box": False, "mask": False, "text": False, "point": True}
    assert heads.keyword_selector is None
    assert not any(parameter.requires_grad for parameter in heads.parameters())


def test_sam_may_be_that_of_any_heads_file(heads_file: Path) -> None:
    heads = load_training_free(Method("localization-heads"), FACTS, sam_checkpoint=heads_file)
    assert heads.mask_refiner is not None
    assert heads.manifest.prompt != "Look."  # the SAM alone was asked for


def test_a_small_sam_may_stand_alone(tmp_path: Path, small_sam: dict[str, Any]) -> None:
    sam = build_sam(small_sam)
    path = tmp_path / "sam.safetensors"
    save_file(dict(sam.state_dict()), path, metadata={"sam": json.dumps(small_sam)})
    heads = load_training_free(Method("localization-heads"), FACTS, sam_checkpoint=path)
    assert heads.mask_refiner is not None
    assert not heads.mask_refiner.several  # nothing was trained to score three masks
    loaded = heads.mask_refiner.sam.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in sam.state_dict().items())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadCheckpoint, match="truncated"):
        load_training_free(Method("localization-heads"), FACTS, sam_checkpoint=path)
    with pytest.raises(BadCheckpoint, match="no SAM at"):
        load_training_free(Method("localization-heads"), FACTS, sam_checkpoint=tmp_path / "no.safetensors")


def test_metas_file_says_its_size_or_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def small(variant: str, checkpoint: str) -> Any:
        built.append(variant)
        return build_sam({"image_size": 32, "patch_size": 8, "encoder_dim": 16, "depth": 1, "heads": 2,
                          "prompt_dim": 16, "decoder_heads": 2})  # fmt: skip

    monkeypatch.setattr("flmm_plugin.heads.training_free.build_sam", small)
    named, unnamed = tmp_path / "sam_vit_h_4b8939.pth", tmp_path / "sam.pth"
    heads = load_training_free(Method("attend-and-segment"), FACTS, sam_checkpoint=named)
    assert heads.mask_refiner is not None
    assert heads.mask_refiner.several  # an official SAM scores its three masks of a point
    load_training_free(Method("localization-heads"), FACTS, sam="vit_b", sam_checkpoint=unnamed)
    assert built == ["vit_h", "vit_b"]
    with pytest.raises(UnknownArgument, match="pass sam=vit_b or"):
        load_training_free(Method("attend-and-segment"), FACTS, sam_checkpoint=unnamed)


def test_without_a_sam_the_fix_is_named(heads_file: Path) -> None:
    with pytest.raises(BadCheckpoint, match=r"gives SAM a box, and no SAM ships for tests/tiny-lmm.*sam_checkpoint="):
        load_training_free(Method("localization-heads"), FACTS)
    heads = load_training_free(Method("localization-heads"), FACTS, sam="none")
    assert heads.mask_refiner is None
    with pytest.raises(UnknownArgument, match="leave it out"):
        load_training_free(Method("attention-argmax"), FACTS, sam_checkpoint=heads_file)
    with pytest.raises(UnknownArgument, match="does not use SAM"):
        TrainingFreeHeads(Method("attention-argmax"), FACTS, build_sam(_numbers(heads_file)))


def test_a_joined_encoder_is_asked_for(make_heads: Callable[..., GroundingHeads], tmp_path: Path) -> None:
    path = tmp_path / "decoder.safetensors"
    save_heads(path, make_heads(sam=None))
    with pytest.raises(BadCheckpoint, match="stores no whole SAM"):
        load_training_free(Method("attend-and-segment"), FACTS, sam_checkpoint=path)


def test_records_tell_methods_and_sams_apart(heads_file: Path) -> None:
    made = [load_training_free(Method(name), FACTS, own_sam=heads_file) for name in NAMES]
    made += [load_training_free(Method("localization-heads", (1,)), FACTS, sam="none")]
    assert len({heads.manifest.sha256 for heads in made}) == len(made)
    assert all(heads.manifest.data.startswith("none: ") for heads in made)


def test_the_argmax_alone_needs_no_sam(heads_file: Path) -> None:
    heads = load_training_free(Method("attention-argmax"), FACTS, own_sam=heads_file)
    out = heads(attention(), [torch.zeros(1, 2, 8)], Image.new("RGB", (32, 24)), GRID)
    assert out.logits is out.decoder_logits
    assert out.logits.shape == (1, 24, 32)
    assert out.logits[0, 7, 22] > 0
    assert out.logits[0, 20, 3] < 0


@pytest.mark.parametrize(("name", "prompt"), [("attend-and-segment", "points"), ("localization-heads", "boxes")])
def test_sam_gets_one_prompt_and_nothing_else(
    name: str, prompt: str, heads_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = load_training_free(Method(name), FACTS, own_sam=heads_file)
    assert heads.mask_refiner is not None
    encoder = heads.mask_refiner.sam.prompt_encoder
    seen: list[dict[str, Any]] = []
    original = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda **given: (seen.append(given), original(**given))[1])
    picture = Image.new("RGB", (32, 24), (200, 10, 10))
    out = heads(attention(), [torch.zeros(3, 2, 8)], picture, GRID)
    assert out.logits.shape == (1, 24, 32)
    (given,) = seen
    assert {key for key, value in given.items() if value is not None} == {prompt}
    # The cell in row 2, column 5 of 8 x 8 over 32 x 24 pixels: x 20 to 24, y 6 to 9; SAM's frame is the same size.
    if prompt == "points":
        points, labels = given["points"]
        assert points.shape == (1, 1, 2)
        x, y = points[0, 0].tolist()
        assert 20 <= x <= 24
        assert 6 <= y <= 9
        assert labels.tolist() == [[1]]
    else:
        x0, y0, x1, y1 = given["boxes"][0].tolist()
        assert x0 < 22 < x1
        assert y0 < 7.5 < y1
    coarse = heads(attention(), [torch.zeros(3, 2, 8)], picture, GRID, refine=False)
    assert torch.equal(coarse.logits, out.decoder_logits)


def test_the_best_of_three_masks_is_taken(heads_file: Path) -> None:
    heads = load_training_free(Method("attend-and-segment"), FACTS, own_sam=heads_file)
    refiner = heads.mask_refiner
    assert refiner is not None
    picture = Image.new("RGB", (32, 24), (10, 200, 10))
    two = torch.cat([attention(), attention(5, 1)])
    hidden = [torch.zeros(1, 2, 8)] * 2
    single = heads(two, hidden, picture, GRID).logits
    refiner.several = True
    best = heads(two, hidden, picture, GRID).logits
    # By hand, with segment-anything's own pieces.
    embedding = refiner.encode_image(picture)
    points = refiner.points_sam(heads.coarse(two, GRID), embedding)
    for index in range(2):
        sparse, dense = refiner.sam.prompt_encoder(
            points=(points[index : index + 1, None], torch.ones(1, 1, dtype=torch.int)), boxes=None, masks=None
        )
        low, scores = refiner.sam.mask_decoder(
            image_embeddings=embedding.features, image_pe=refiner.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=True,
        )  # fmt: skip
        masks = refiner.sam.postprocess_masks(low, embedding.input_size, embedding.original_size)[0]
        assert torch.allclose(best[index], masks[int(scores[0].argmax())], atol=1e-5)
    assert not torch.equal(single, best)


def _numbers(path: Path) -> dict[str, Any]:
    numbers = read_manifest(path).sam
    assert isinstance(numbers, dict)
    return numbers
