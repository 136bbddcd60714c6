"""Heads by name, from an empty home and servers that play the drive, Meta's file server and the hub."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flmm_plugin import files, hub_files
from flmm_plugin.adapters.answering.arguments import ModelArguments
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.answering.identity import answer_identity
from flmm_plugin.adapters.answering.needs import model_needs
from flmm_plugin.cli import main
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.errors import BadAnnotation, FlmmError, HeadsMismatch, UnknownArgument
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.heads import BackboneFacts, load_heads, read_manifest
from flmm_plugin.heads.hub import FILE, model_card
from flmm_plugin.heads.store import find_heads, get_heads, store_folder
from flmm_plugin.heads_choice import needs_for, own_facts
from flmm_plugin.needs import NotReady, missing

from .published import DEEPSEEK, HEADS, SAM, small_sam
from .sites import Repo
from .world import World

NAME = "DeepSeekVL-1.3B"
DRIVE_ID, FILE_NAME = HEADS[DEEPSEEK]


@pytest.fixture
def user(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """This process is the user."""
    world.here(monkeypatch)
    monkeypatch.delenv(files.CACHE_VARIABLE, raising=False)
    hub_files.hub_answers.cache_clear()
    with small_sam():
        yield world
    hub_files.hub_answers.cache_clear()


def numbers() -> BackboneFacts | None:
    return own_facts(DEEPSEEK, None)


def asked(user: World, *parts: str) -> list[str]:
    return [str(one) for one in user.proxy.answered if any(part in str(one) for part in parts)]


def share(user: World, path: Path, repository: str) -> Repo:
    """Put heads onto the hub as `push_heads` does."""
    card = model_card(read_manifest(path), repository)
    user.hub.models[repository] = Repo({FILE: path.read_bytes(), "README.md": card.encode()})
    return user.hub.models[repository]


def test_released_heads_come_by_name_once(user: World, published: Path) -> None:
    path = get_heads(NAME, facts=numbers)
    assert path.parent == store_folder()
    notes = read_manifest(path).notes
    assert notes["source"].endswith(DRIVE_ID)
    assert notes["source_sha256"] == file_digest(published / FILE_NAME)
    heads = load_heads(path)
    assert heads.mask_refiner is not None
    assert heads.manifest.stores_image_encoder
    assert heads.manifest.template.startswith("User: {image}")
    assert not list(store_folder().rglob("*.pth"))
    before = len(user.proxy.answered)
    assert get_heads(DEEPSEEK) == get_heads("deepseek-vl-1.3b") == get_heads(path) == path
    assert find_heads("models/deepseek-vl-1.3b-chat") == find_heads(DEEPSEEK, "a" * 40) == path
    assert find_heads("llava-hf/llava-1.5-7b-hf") is None
    assert len(user.proxy.answered) == before


def test_heads_of_other_numbers_than_the_checkpoint_are_refused_and_kept_as_fetched(user: World) -> None:
    with pytest.raises(HeadsMismatch, match="384"):
        get_heads(NAME)  # the paper's own numbers, not those of the small model
    assert [path.name for path in store_folder().rglob("*.pth")] == [FILE_NAME]
    assert find_heads(DEEPSEEK) is None
    half_written = store_folder() / ".deepseek-vl-1.3b-chat.safetensors.abc.part"  # by a process that was killed
    half_written.touch()
    fetched = len(asked(user, DRIVE_ID))
    assert get_heads(NAME, facts=numbers).is_file()
    assert len(asked(user, DRIVE_ID)) == fetched
    assert not half_written.exists()


def test_a_quota_page_is_called_what_it_is_and_leaves_nothing(user: World) -> None:
    user.drive.quota.add(DRIVE_ID)
    with pytest.raises(FlmmError, match=r"(?i)quota|web page|too many") as caught:
        get_heads(NAME, facts=numbers)
    assert DRIVE_ID in str(caught.value)
    assert find_heads(DEEPSEEK) is None
    user.drive.quota.clear()
    assert get_heads(NAME, facts=numbers).is_file()


def test_something_else_under_the_name_is_no_heads(user: World) -> None:
    user.drive.files[DRIVE_ID] = (FILE_NAME, b"\x80 not tensors")
    with pytest.raises(BadAnnotation, match="deleted"):
        get_heads(NAME, facts=numbers)
    assert not list(store_folder().rglob("*.pth"))


def test_without_leave_to_fetch_all_that_is_missing_is_said(user: World, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(user.proxy.answered)
    with pytest.raises(NotReady, match=f"flmm heads get {NAME}"):
        get_heads(NAME, fetch=False)
    monkeypatch.setenv("FLMM_OFFLINE", "1")
    with pytest.raises(NotReady, match="vit_l"):
        get_heads(NAME)
    with pytest.raises(NotReady) as caught:
        GroundedLMM.from_pretrained(DEEPSEEK, fetch=False)
    for part in ("model ", "heads ", "sam ", f"hf download {DEEPSEEK}"):
        assert part in str(caught.value)
    assert len(user.proxy.answered) == before


def test_of_two_at_once_one_fetches_and_the_other_waits(user: World) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(get_heads(NAME, facts=numbers))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
    assert len([one for one in asked(user, "/download?") if "confirm=t" in one]) <= 1
    assert len(asked(user, SAM)) == 1


def test_a_hub_repository_is_pulled_into_the_store(user: World, tmp_path: Path) -> None:
    source = tmp_path / "own.safetensors"
    shutil.move(get_heads(NAME, facts=numbers), source)
    repo = share(user, source, "me/heads")
    path = get_heads("me/heads")
    assert path.parent == store_folder()
    notes = read_manifest(path).notes
    assert (notes["source"], notes["source_commit"]) == ("https://huggingface.co/me/heads", repo.commit)
    assert read_manifest(path).sha256 == read_manifest(source).sha256
    before = len(user.proxy.answered)
    assert get_heads("me/heads", fetch=False) == path == find_heads(DEEPSEEK)
    assert len(user.proxy.answered) == before
    named = get_heads(f"me/heads@{repo.commit}")
    assert named != path
    with pytest.raises(HeadsMismatch, match="several"):
        find_heads(DEEPSEEK)
    shutil.copyfile(source, store_folder() / "deepseek-vl-1.3b-chat.safetensors")  # the released ones come first
    assert find_heads(DEEPSEEK) == store_folder() / "deepseek-vl-1.3b-chat.safetensors"
    with pytest.raises(UnknownArgument, match="did you mean"):
        get_heads("DeepSeekVL-1.3")


def test_auto_is_what_python_takes(user: World) -> None:
    lmm = GroundedLMM.from_pretrained(DEEPSEEK, device="cpu")
    assert lmm.heads is not None
    (found,) = lmm.ground(Image.new("RGB", (40, 30)), ["a dog"])
    assert found.mask.shape == (30, 40)
    before = len(asked(user, "drive"))
    again = GroundedLMM.from_pretrained(DEEPSEEK, fetch=False, device="cpu")
    assert again.heads is not None
    assert len(asked(user, "drive")) == before


def test_where_there_are_no_heads_the_model_chats_and_says_what_can_be_done(user: World, published: Path) -> None:
    own = user.work / "my-lmm"
    shutil.copytree(published / "models" / DEEPSEEK, own)
    lmm = GroundedLMM.from_pretrained(own, device="cpu")
    assert lmm.heads is None
    assert lmm.chat(Image.new("RGB", (40, 30)), "What?", max_new_tokens=2).token_ids
    with pytest.raises(HeadsMismatch, match=r"flmm train flmm_deepseekvl backbone.pretrained=.*my-lmm") as caught:
        lmm.ground(Image.new("RGB", (40, 30)), ["a dog"])
    assert "attention-argmax" in str(caught.value)
    assert "flmm plan" in str(caught.value)
    user.hub.models["me/lmm"] = Repo({"config.json": b'{"model_type": "deepseek_vl"}'})
    get_heads(NAME, facts=numbers)
    card = b'---\nbase_model: me/lmm\ntags: ["f-lmm"]\n---\n'
    user.hub.models["you/heads"] = Repo({FILE: b"", "README.md": card})
    (need,) = missing(needs_for("me/lmm", "auto"))
    assert need.bring is None
    assert "you/heads" in need.command
    assert needs_for("me/lmm", "auto", required=False) == []


def arguments(**given: Any) -> ModelArguments:
    return ModelArguments.read(DEFAULTS["flmm_deepseekvl"], given)


def test_needs_of_a_model_have_their_sizes(user: World, published: Path) -> None:
    (weights,) = model_needs(arguments(), grounds=False)
    folder = published / "models" / DEEPSEEK
    assert weights.size == sum(path.stat().st_size for path in folder.iterdir() if path.suffix != ".bin")
    assert weights.licence == "other"
    everything = model_needs(arguments(), grounds=True)
    assert [need.kind for need in everything] == ["model", "sam", "heads"]
    assert "NTU" in everything[2].licence
    assert len(model_needs(arguments(heads="none"), grounds=True)) == 1
    for need in everything:
        assert need.bring is not None
        need.bring()
    assert missing(model_needs(arguments(), grounds=True)) == []
    assert not asked(user, "pytorch_model.bin")
    (part, *_) = (user.home / ".cache/huggingface/hub").glob("models--*/snapshots/*/model.safetensors")
    part.unlink()
    assert missing(model_needs(arguments(), grounds=False))[0].size == (folder / "model.safetensors").stat().st_size


def test_a_chat_takes_no_heads_and_a_request_for_masks_does(user: World) -> None:
    from flmm_plugin.adapters.answering.requests import Request
    from flmm_plugin.adapters.lmms_eval.classes import FlmmDeepseekvl

    def request(**options: Any) -> Request:
        return Request(0, "", None, True, options, "some", "test", 0, False)

    model = FlmmDeepseekvl(device="cpu")
    model.get_ready([request(max_new_tokens=3)])
    assert model.lmm.heads is None
    assert model.provenance["heads"] is None
    assert not asked(user, "drive", SAM)
    chat = answer_identity(model, grounds=False)
    model.get_ready([request(flmm_ground=True)])
    assert model.lmm.heads is not None
    assert model.provenance["heads"]["source"].endswith(DRIVE_ID)
    assert answer_identity(model, grounds=False) == chat != answer_identity(model)


def test_the_command_gets_and_lists_them(user: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", "get", NAME, "--no-fetch"]) == 2
    assert f"flmm heads get {NAME}" in capsys.readouterr().err
    assert main(["heads", "get", NAME, "--out", "copy.safetensors"]) == 0
    assert read_manifest("copy.safetensors").backbone == DEEPSEEK
    capsys.readouterr()
    assert main(["heads", "list"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if str(store_folder()) in line]
    assert len(rows) == 1
    assert rows[0].startswith(NAME)
