"""Files as the paper's authors published them; needs them on disk.

One line, with ``$FLMM_WEIGHTS/heads/<name>.pth`` for any of the names that ``flmm heads list`` prints (the paper's
name, or the last part of the hub name) and Meta's ``sam_vit_l_0b3195.pth`` beside the folder ``heads``::

    FLMM_WEIGHTS=/path/with/files pytest -m weights tests/flmm_plugin/heads/test_released_files.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from flmm_plugin.heads import load_heads, save_heads
from flmm_plugin.heads.official import convert, read_official
from flmm_plugin.heads.released import RELEASED, ReleasedLMM
from flmm_plugin.heads.sam import OFFICIAL_FILES


@pytest.mark.weights
@pytest.mark.parametrize("lmm", RELEASED, ids=lambda lmm: lmm.name)
def test_a_published_file_converts_and_decodes(lmm: ReleasedLMM, tmp_path: Path) -> None:
    root = Path(os.environ["FLMM_WEIGHTS"])
    files = [path for path in (root / "heads").glob("*.pth") if path.stem.lower() in lmm.names]
    if not files:
        pytest.skip(f"put the released file at {root / 'heads' / lmm.names[0]}.pth")
    sam = root / OFFICIAL_FILES["vit_l"]
    if not sam.is_file():
        pytest.skip(f"download {sam.name} from segment-anything's model page into {root}")
    heads = convert(read_official(files[0]), lmm, sam_checkpoint=sam)
    save_heads(tmp_path / "heads.safetensors", heads)
    loaded = load_heads(tmp_path / "heads.safetensors", expect=lmm.facts)
    # A trained decoder says no where nothing is looked at, and is sure of something where one spot is.
    maps = torch.full((1, lmm.facts.attention_maps, 24, 24), 1e-4)
    maps[..., 8:14, 10:16] = 1e-2
    with torch.no_grad():
        logits = loaded.mask_decoder(maps)[0]
    assert bool(torch.isfinite(logits).all())
    assert float(logits[:8, :8].mean()) < 0
    assert float(logits.max() - logits.min()) > 1
