"""What decides an answer has one name: of content, and of all of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from flmm_plugin.adapters.answering import identity
from flmm_plugin.adapters.answering.identity import answer_facts, answer_identity, asked_digest, picture_digest
from flmm_plugin.adapters.answering.visual_cot import VisualCotMode
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.tiny import heads_path, tiny_path


def loaded(**options: Any) -> Any:
    lmm = GroundedLMM.from_pretrained(**options)
    return SimpleNamespace(lmm=lmm, visual_cot=VisualCotMode(), batch_size=1)


@pytest.fixture(scope="module")
def whole() -> Any:
    return loaded()


@pytest.fixture
def model(whole: Any) -> Any:
    """A loaded model whose parts may be changed."""
    lmm = copy.copy(whole.lmm)
    lmm.backbone = copy.copy(lmm.backbone)
    lmm.heads = copy.deepcopy(lmm.heads)
    for name in ("processor", "tokenizer"):
        setattr(lmm.backbone, name, copy.deepcopy(getattr(lmm.backbone, name)))
    return SimpleNamespace(lmm=lmm, visual_cot=VisualCotMode(), batch_size=1)


def grown(tensor: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.view(-1)[7] += 1e-3


CHANGES = {
    "one value of the heads": lambda m: grown(next(m.lmm.heads.mask_decoder.parameters())),
    "one value of SAM's encoder": lambda m: grown(next(m.lmm.heads.mask_refiner.sam.image_encoder.parameters())),
    "no heads": lambda m: setattr(m.lmm, "heads", None),
    "the heads' prompt": lambda m: setattr(
        m.lmm.heads, "manifest", dataclasses.replace(m.lmm.heads.manifest, prompt="Look.")
    ),
    "merge": lambda m: setattr(m.lmm, "merge", "max"),
    "preprocessing": lambda m: setattr(m.lmm.backbone, "preprocessing", "paper"),
    "system prompt": lambda m: setattr(m.lmm.backbone, "system_prompt", "Be brief."),
    "chat template": lambda m: setattr(m.lmm.backbone.processor, "chat_template", "{{ messages }}"),
    "picture processor": lambda m: setattr(m.lmm.backbone.processor.image_processor, "image_mean", [0.4, 0.5, 0.5]),
    "tokenizer": lambda m: m.lmm.backbone.tokenizer.add_tokens(["zebra"]),
    "visual_cot": lambda m: setattr(m, "visual_cot", VisualCotMode(scale=1.5)),
    "visual_cot for all": lambda m: setattr(m, "visual_cot", VisualCotMode("v1")),
    "batch size": lambda m: setattr(m, "batch_size", 2),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_part_is_another_name(whole: Any, model: Any, what: str) -> None:
    assert answer_identity(model) == answer_identity(whole)
    CHANGES[what](model)
    assert answer_identity(model) != answer_identity(whole)


@pytest.mark.parametrize(
    ("where", "name"), [("config", "image_seq_length"), ("generation_config", "repetition_penalty")]
)
def test_configurations_count(whole: Any, monkeypatch: pytest.MonkeyPatch, where: str, name: str) -> None:
    before = answer_identity(whole)
    monkeypatch.setattr(getattr(whole.lmm.backbone.model, where), name, 2)
    assert answer_identity(whole) != before


@pytest.mark.parametrize("part", ["versions", "code_digest"])
def test_libraries_and_code_count(whole: Any, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    before = answer_identity(whole)
    monkeypatch.setattr(identity, part, lambda *_: "other")
    assert answer_identity(whole) != before


def test_content_counts_and_its_place_does_not(whole: Any, tmp_path: Path) -> None:
    shutil.copytree(tiny_path(), tmp_path / "elsewhere")
    shutil.copy(heads_path(), tmp_path / "other.safetensors")
    here = {"backbone": str(tmp_path / "elsewhere"), "heads": str(tmp_path / "other.safetensors")}
    with pytest.warns(UserWarning, match="trained on"):
        assert answer_facts(loaded(**here)) == answer_facts(whole)
    weights = next(path for path in (tmp_path / "elsewhere").rglob("*.safetensors"))
    times, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.warns(UserWarning, match="trained on"):
        assert answer_facts(loaded(**here))["weights"] != answer_facts(whole)["weights"]


def test_a_name_is_the_same_in_every_process_and_after_answers(whole: Any) -> None:
    facts = json.dumps(answer_facts(whole))
    whole.lmm.chat_batch([[{"role": "user", "content": text}] for text in ("a", "a b c")], [[], []], max_new_tokens=1)
    assert json.dumps(answer_facts(whole)) == facts
    program = (
        "from test_identity import answer_identity, loaded; print(answer_identity(loaded()))"
    )  # fmt: skip
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert said.stdout.split()[-1] == answer_identity(whole)


def test_a_picture_is_its_pixels_or_its_bytes(tmp_path: Path) -> None:
    one, other = Image.new("RGB", (4, 2), (1, 0, 0)), Image.new("RGB", (4, 2), (2, 0, 0))
    turned = Image.new("RGB", (2, 4), (1, 0, 0))
    palette = Image.new("P", (4, 2))
    coloured = palette.copy()
    coloured.putpalette([9] * 768)
    pictures = [one, other, turned, palette, coloured, one.convert("L")]
    assert len({picture_digest(picture) for picture in pictures}) == len(pictures)
    assert picture_digest(one) == picture_digest(one.copy())
    path = tmp_path / "a.png"
    one.save(path)
    before = asked_digest(["what?"], [path])
    assert asked_digest(["what?"], [str(path)]) == before != asked_digest(["who?"], [path])
    times = path.stat()
    other.save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert asked_digest(["what?"], [path]) != before


def test_a_run_of_preserve_belongs_to_the_content_that_its_arguments_point_to(tmp_path: Path) -> None:
    from flmm_plugin.adapters.preservation.record import RunSpec, run_key

    folder, heads = tmp_path / "lmm", tmp_path / "h.safetensors"
    folder.mkdir()
    weights = folder / "model.safetensors"
    names = []
    for content in ((b"1", b"1"), (b"2", b"1"), (b"1", b"2"), (b"1", b"1")):
        for path, some in zip((weights, heads), content, strict=True):
            path.write_bytes(some)
            os.utime(path, (1e9, 1e9))
        arguments = {"pretrained": str(folder), "heads": str(heads)}
        spec = RunSpec(role="F-LMM", model="flmm_llava", model_args=arguments, tasks=("mme",))
        names.append(run_key(spec, 1))
    assert len(set(names)) == 3
    assert names[0] == names[3]
