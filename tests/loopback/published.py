"""Write what is published, at small size: models, heads, SAM, RefCOCO and MME, each in its publisher's layout.

All weights are random, so the numbers of a run mean nothing. What must hold is everything else: names, layouts,
addresses, hashes, order and content of the requests.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .sites import Repo
from .world import World

DEEPSEEK, LLAVA = "deepseek-community/deepseek-vl-1.3b-chat", "llava-hf/llava-1.5-7b-hf"
MME = "lmms-lab-encoder/MME"

#: Hub id -> id of its heads' file on the drive, its name there.
HEADS = {
    DEEPSEEK: ("1UXcjJrrpTm1bNphvPNjvol9gUfvzNbjA", "frozen_deepseek_vl_1_3b_chat_unet_sam_l_refcoco_png.pth"),
    LLAVA: ("1opjFe15B5L5JJ78gE_FsXvDnwSlwSHhh", "frozen_llava_1_5_vicuna_7b_unet_sam_l_refcoco_png.pth"),
}

SAM = "sam_vit_l_0b3195.pth"
#: Pictures per split, and referred to pictures of MME.
SPLITS = {"val": 2, "testA": 1, "testB": 1, "train": 1}
MME_PICTURES = 2

#: Found by trying; another version of torch may write other bytes, for which one is found again.
_NONCE = b"0004585315"
_ATTEMPTS = 1 << 28

#: Layers, heads and hidden size of both tiny models.
_LAYERS, _ATTENTION_HEADS, _HIDDEN = 2, 4, 32


def publish(folder: Path) -> Path:
    """Write everything into a folder; see `stock` for what is where. Takes seconds, once per session."""
    import torch

    from flmm_plugin.tiny.layouts import write_refer
    from flmm_plugin.tiny.layouts_questions import write_mme
    from tests.flmm_plugin.backbones.families import FAMILIES
    from tests.flmm_plugin.heads.released_oracle import released_state

    for repo, family in ((DEEPSEEK, "deepseek_vl"), (LLAVA, "llava")):
        FAMILIES[family].save(folder / "models" / repo)
        (folder / "models" / repo / "README.md").write_text("---\nlicense: other\n---\n# A model\n")
        # Older weights, which some repositories keep beside the others and nobody should fetch.
        (folder / "models" / repo / "pytorch_model.bin").write_bytes(b"older weights")
    sam = random_sam()
    (folder / SAM).write_bytes(with_hash(saved(sam.state_dict()), SAM.rsplit("_", 1)[1].removesuffix(".pth")))
    for _, name in HEADS.values():
        state = released_state(_LAYERS * _ATTENTION_HEADS, _LAYERS, _HIDDEN, sam, base=8)
        torch.save(state, folder / name)
    write_refer(folder, scenes=SPLITS, names=("refcoco",))
    with zipfile.ZipFile(folder / "refcoco.zip", "w") as archive:
        for path in sorted((folder / "coco/refcoco").iterdir()):
            archive.write(path, f"refcoco/{path.name}")
    mme = write_mme(folder / "datasets", scenes=MME_PICTURES)
    write_kit_mme(mme, folder / "MME.tsv")
    return folder


def write_kit_mme(parquet: Path, path: Path) -> None:
    """Write MME as VLMEvalKit's server has it: one table, the pictures in base64."""
    import base64

    import pandas as pd

    table = pd.read_parquet(parquet)
    table["image"] = [base64.b64encode(image["bytes"]).decode() for image in table["image"]]
    table.insert(0, "index", range(len(table)))
    table.rename(columns={"question_id": "image_path"}).to_csv(path, sep="\t", index=False)


def stock(world: World, folder: Path) -> None:
    """Put what `publish` wrote onto the servers."""
    for repo, (file_id, name) in HEADS.items():
        world.hub.add_folder(repo, folder / "models" / repo)
        world.drive.files[file_id] = (name, folder / name)
    world.hub.datasets[MME] = Repo(
        {
            path.relative_to(folder / "datasets" / MME).as_posix(): path
            for path in (folder / "datasets").rglob("*.parquet")
        }
    )
    world.files["dl.fbaipublicfiles.com"].files[f"/segment_anything/{SAM}"] = folder / SAM
    world.files["bvisionweb1.cs.unc.edu"].files["/licheng/referit/data/refcoco.zip"] = folder / "refcoco.zip"
    world.files["opencompass.openxlab.space"].files["/utils/VLMEval/MME.tsv"] = folder / "MME.tsv"
    for path in (folder / "coco/train2014").iterdir():
        world.files["images.cocodataset.org"].files[f"/train2014/{path.name}"] = path
    world.paths.append(Path(__file__).parent / "small_sam")


@contextlib.contextmanager
def small_sam() -> Iterator[Any]:
    """Have `segment_anything` of this process build the small ``vit_l``, as its ``sitecustomize`` does elsewhere."""
    import importlib.util

    from segment_anything import sam_model_registry

    spec = importlib.util.spec_from_file_location(
        "tests_small_sam", Path(__file__).parent / "small_sam/sitecustomize.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = sam_model_registry["vit_l"]
    sam_model_registry["vit_l"] = module.small_vit_l
    try:
        yield module.small_vit_l
    finally:
        sam_model_registry["vit_l"] = before


def random_sam() -> Any:
    """Build the small ``vit_l`` with random weights that are the same each time."""
    import torch

    with small_sam() as build:
        sam = build()
    generator = torch.Generator().manual_seed(1)
    for parameter in sam.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    codes = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    codes.copy_(torch.randn(codes.shape, generator=generator))
    return sam


def saved(state: dict[str, Any]) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def with_hash(archive: bytes, begins: str) -> bytes:
    """Give a zip file a comment with which its MD5 begins as asked."""
    assert archive[-2:] == b"\0\0", "the archive has a comment already"
    body = archive[:-2] + struct.pack("<H", len(_NONCE))
    start = hashlib.md5(body)
    wanted, half = bytes.fromhex(begins), len(begins) // 2
    for nonce in _nonces():
        state = start.copy()
        state.update(nonce)
        if state.digest()[:half] == wanted:
            return body + nonce
    raise AssertionError(f"no comment gives a hash that begins with {begins}")


def _nonces() -> Iterator[bytes]:
    yield _NONCE
    for number in range(_ATTEMPTS):
        yield b"%010d" % number
