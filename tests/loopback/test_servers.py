"""The played servers, asked by the clients that the product uses."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from .world import World

CONTENT = bytes(range(256)) * 1000
SAM = "https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth"
COCO = "http://images.cocodataset.org/train2017/000000000009.jpg"
DRIVE_ID = "1UXcjJrrpTm1bNphvPNjvol9gUfvzNbjA"


@pytest.fixture
def world(loopback: World) -> World:
    loopback.files["dl.fbaipublicfiles.com"].files["/segment_anything/sam_vit_l_0b3195.pth"] = CONTENT
    loopback.files["images.cocodataset.org"].files["/train2017/000000000009.jpg"] = CONTENT[:999]
    loopback.drive.files[DRIVE_ID] = ("heads.pth", CONTENT)
    return loopback


def get(address: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(address, headers={name.replace("_", "-"): text for name, text in headers.items()})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.status, dict(answer.headers), answer.read()


def test_every_client_of_a_command_goes_through_the_proxy(world: World) -> None:
    code = f"""
import json, urllib.request, requests, httpx, httpx2
found = {{}}
for address in {[SAM, COCO]!r}:
    found[address] = [
        len(urllib.request.urlopen(address).read()), len(requests.get(address).content),
        len(httpx.get(address).content), len(httpx2.get(address).content),
    ]
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=world.environment(), cwd=world.work, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {SAM: [256000] * 4, COCO: [999] * 4}
    assert len(world.proxy.answered) == 8
    assert world.unknown == []


def test_this_process_can_be_the_user(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.here(monkeypatch)
    assert get(SAM)[2] == CONTENT
    assert Path.home() == world.home
    with pytest.raises(OSError, match="502"):
        get("https://example.org/file")
    assert len(world.unknown) == 1


def test_a_server_that_is_not_trusted_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.here(monkeypatch)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(urllib.error.URLError, match="certificate"):
        get(SAM)


def test_parts_of_a_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.here(monkeypatch)
    status, headers, body = get(SAM, Range="bytes=255000-")
    assert (status, headers["Content-Range"], body) == (206, "bytes 255000-255999/256000", CONTENT[255000:])
    assert get(SAM, Range="bytes=10-19")[2] == CONTENT[10:20]
    assert get(SAM, Range="bytes=-5")[2] == CONTENT[-5:]
    assert get(SAM, Range="bytes=5-", If_Range=headers["ETag"])[0] == 206
    assert get(SAM, Range="bytes=5-", If_Range='"another"')[::2] == (200, CONTENT)
    with pytest.raises(urllib.error.HTTPError, match="416"):
        get(SAM, Range="bytes=256000-")


def test_faults(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.here(monkeypatch)
    world.break_("segment_anything", status=500, times=1)
    with pytest.raises(urllib.error.HTTPError, match="500"):
        get(SAM)
    assert get(SAM)[2] == CONTENT

    world.mend()
    world.break_("segment_anything", cut=20000)
    with pytest.raises(http.client.IncompleteRead, match="20000 bytes"):
        get(SAM)
    assert world.proxy.answered[-1].sent == 20000

    world.mend()
    world.break_("segment_anything", ranges=False)
    assert get(SAM, Range="bytes=255000-")[::2] == (200, CONTENT)

    world.mend()
    world.break_("segment_anything", html="Please log in")
    assert b"Please log in" in get(SAM)[2]

    world.mend()
    held = world.break_("segment_anything", hold=16384)
    threading.Thread(target=_quietly, args=(SAM,), daemon=True).start()
    assert held.reached.wait(10)
    assert world.proxy.answered[-1].sent == 16384


def _quietly(address: str) -> None:
    with contextlib.suppress(Exception):
        get(address)


@pytest.mark.parametrize("plain", [True, False], ids=["small", "confirmed"])
def test_the_drive_gives_a_file_to_gdown(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    import gdown

    world.here(monkeypatch)
    world.drive.plain = plain
    target = tmp_path / "heads.pth"
    gdown.download(id=DRIVE_ID, output=str(target), quiet=True, use_cookies=False)
    assert target.read_bytes() == CONTENT
    pages = 0 if plain else 1
    assert len(world.proxy.answered) == 2 + pages


def test_the_drive_has_a_quota_and_can_be_cut(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdown

    world.here(monkeypatch)
    world.drive.quota.add(DRIVE_ID)
    target = tmp_path / "heads.pth"
    with pytest.raises(gdown.exceptions.FileURLRetrievalError, match="users"):
        gdown.download(id=DRIVE_ID, output=str(target), quiet=True, use_cookies=False)
    with pytest.raises(gdown.exceptions.FileURLRetrievalError, match="permission"):
        gdown.download(id="1" * 33, output=str(target), quiet=True, use_cookies=False)
    world.drive.quota.clear()
    world.drive.files[DRIVE_ID] = ("heads.pth", CONTENT * 4)
    world.break_("confirm=t", cut=700_000, times=1)
    with pytest.raises(gdown.exceptions.DownloadError, match="incomplete"):
        gdown.download(id=DRIVE_ID, output=str(target), quiet=True, use_cookies=False)
    gdown.download(id=DRIVE_ID, output=str(target), quiet=True, use_cookies=False, resume=True)
    assert target.read_bytes() == CONTENT * 4
    assert [one.status for one in world.proxy.answered[-2:]] == [200, 206]


@pytest.fixture
def hub(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    folder = tmp_path / "model"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "model.safetensors").write_bytes(CONTENT)
    (folder / "more/notes.txt").write_text("text")
    (folder / "README.md").write_text("---\ntags: [f-lmm]\nbase_model: a/base\n---\n# Model\n")
    world.hub.add_folder("org/model", folder)
    world.here(monkeypatch)
    return world


def test_the_hub_gives_a_model(hub: World) -> None:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    here = Path(snapshot_download("org/model"))
    assert (here / "model.safetensors").read_bytes() == CONTENT
    assert (here / "more/notes.txt").read_text() == "text"
    before = len(hub.proxy.answered)
    assert Path(hf_hub_download("org/model", "config.json", revision=here.name)).is_file()
    assert len(hub.proxy.answered) == before

    api = HfApi()
    info = api.model_info("org/model", files_metadata=True)
    sizes = {one.rfilename: (one.size, one.lfs and one.lfs.sha256) for one in info.siblings or []}
    assert sizes["model.safetensors"] == (256000, hashlib.sha256(CONTENT).hexdigest())
    assert sizes["more/notes.txt"] == (4, None)
    assert [one.path for one in api.list_repo_tree("org/model")] == [
        "README.md", "config.json", "model.safetensors", "more",
    ]  # fmt: skip
    assert api.get_paths_info("org/model", ["config.json"])[0].size == 23
    assert api.file_exists("org/model", "config.json")
    assert not api.file_exists("org/model", "other.json")
    assert [one.id for one in api.list_models(filter=["f-lmm", "base_model:a/base"])] == ["org/model"]
    assert [*api.list_models(filter="other")] == []
    assert hub.unknown == []


def test_the_hub_says_what_is_not_there(hub: World) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("org/none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("org/model", "none.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("org/model", "config.json", revision="v9")


def test_a_download_from_the_hub_that_was_cut_is_resumed(hub: World) -> None:
    from huggingface_hub import hf_hub_download

    hub.break_("model.safetensors", cut=100_000, times=1)
    path = Path(hf_hub_download("org/model", "model.safetensors"))
    assert path.read_bytes() == CONTENT
    assert len(hub.proxy.answered) == 3


def test_the_hub_takes_what_is_pushed(hub: World, tmp_path: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    folder = tmp_path / "push"
    folder.mkdir()
    (folder / "heads.safetensors").write_bytes(CONTENT)
    with pytest.raises(HfHubHTTPError):
        HfApi(token="wrong").create_repo("org/heads")
    api = HfApi(token=hub.hub.token)
    api.create_repo("org/heads", private=False, exist_ok=True)
    api.upload_folder(repo_id="org/heads", folder_path=str(folder), commit_message="heads")
    assert Path(hf_hub_download("org/heads", "heads.safetensors")).read_bytes() == CONTENT
    assert hub.unknown == []


def test_the_hub_gives_data_sets(hub: World, tmp_path: Path) -> None:
    """In a process of its own: `datasets` reads its settings once."""
    from flmm_plugin.tiny.layouts_questions import write_mme

    write_mme(tmp_path / "hub", scenes=2)
    hub.hub.add_folder("lmms-lab-encoder/MME", tmp_path / "hub/lmms-lab-encoder/MME", kind="datasets")
    code = "import datasets; print(len(datasets.load_dataset('lmms-lab-encoder/MME', split='test')))"
    run: Any = subprocess.run(
        [sys.executable, "-c", code], env=hub.environment(), cwd=hub.work, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout.strip()) == (0, "4"), run.stderr
    assert hub.unknown == []
