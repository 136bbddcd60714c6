"""The embedded world's SAM as it is before any heads are trained: what Meta's files are for the official sizes.

It was trained by `tools.tiny.train_sam` on scenes alone and never met an LMM. Heads are trained from it; the
heads file holds it too, but with a mask decoder that has learnt from the LMM since.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from flmm_plugin import files
from flmm_plugin.heads.weights import tensors_sha256
from flmm_plugin.json_lines import Log
from flmm_plugin.tiny import sam_path
from tools.tiny.train_sam import SAM_NUMBERS, SamConfig, train_sam


def write_sam(state: dict[str, Tensor], path: Path, config: SamConfig) -> Path:
    """Store a SAM's weights in float16, with the numbers and the recipe that made it."""
    tensors = {name: tensor.half().contiguous() for name, tensor in state.items()}
    facts = {"sam": json.dumps(SAM_NUMBERS), "recipe": json.dumps(asdict(config)), "sha256": tensors_sha256(tensors)}
    return files.write(path, save(tensors, facts))


def make_sam(out: Path, config: SamConfig, device: str = "cpu", *, install: bool = False) -> Path:
    """Train the SAM, or take the one of an earlier run in ``out``, and write ``out/sam.safetensors``.

    Args:
        out: Work folder; holds the state for resuming.
        config: Knobs.
        device: Where it learns.
        install: Also put the file where the package looks for it.
    """
    files.make_folder(out)
    state = train_sam(out, config, Log(out / "heads_log.jsonl"), device)
    if install:
        write_sam(state, sam_path(), config)
    return write_sam(state, out / "sam.safetensors", config)
