"""The embedded model's small SAM: segment-anything's own modules at small numbers, trained on the procedural world.

It learns to segment objects from boxes, points and coarse masks, as SAM did, and never meets the LMM. Its image encoder
is frozen afterwards, when the grounding heads are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flmm_plugin.heads import MaskRefiner, build_sam
from flmm_plugin.json_lines import Log
from flmm_plugin.tiny.scenes import render, sample_scene, visible_masks
from tools.tiny import lmm
from tools.tiny.optim import schedule
from tools.tiny.runs import atomic_save, load_state

SAM_NUMBERS: dict[str, Any] = {
    "image_size": 128,
    "patch_size": 8,
    "encoder_dim": 96,
    "depth": 4,
    "heads": 4,
    "prompt_dim": 64,
    "decoder_mlp_dim": 128,
    "decoder_heads": 4,
    "mlp_ratio": 2,
}
SIDE = int(SAM_NUMBERS["image_size"])


@dataclass(frozen=True)
class SamConfig:
    """Knobs of the small SAM's training."""

    seed: int = 0
    steps: int = 800
    batch: int = 8
    lr: float = 1e-3


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """BCE plus DICE (naive, eps 1) of ``[n, ...]`` logits against ``[n, ...]`` targets in 0..1."""
    flat, truth = logits.flatten(1), target.flatten(1).float()
    probability = flat.sigmoid()
    dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(flat, truth) + dice.mean()


def _noisy_prompt(refiner: MaskRefiner, mask: Tensor, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """A jittered box, a point inside, or a blurred coarse mask of ``bool [S, S]``; sometimes box and mask together."""
    ys, xs = torch.nonzero(mask, as_tuple=True)
    box = torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]], dtype=torch.float32)
    box = box + torch.from_numpy(rng.normal(0, 3, (1, 4))).float()
    pick = int(rng.integers(len(xs)))
    points = (torch.tensor([[[xs[pick], ys[pick]]]], dtype=torch.float32), torch.ones(1, 1, dtype=torch.int))
    coarse = (
        F.adaptive_avg_pool2d(mask[None, None].float(), lmm.GRID)
        + torch.from_numpy(rng.normal(0, 0.15, (1, 1, lmm.GRID, lmm.GRID))).float()
    )
    size = refiner.sam.prompt_encoder.mask_input_size
    dense = F.interpolate((coarse - 0.5) * float(rng.uniform(3, 14)), size, mode="bilinear", align_corners=False)
    which = rng.random()
    if which < 0.3:
        return None, box, None
    if which < 0.5:
        return points, None, None
    return None, (box if which < 0.8 else None), dense


def _on(device: str, prompt: Any) -> Any:
    """A prompt (None, a tensor or a pair of tensors) on the device."""
    if prompt is None:
        return None
    return tuple(part.to(device) for part in prompt) if isinstance(prompt, tuple) else prompt.to(device)


def train_sam(out: Path, config: SamConfig, log: Log, device: str = "cpu") -> dict[str, Tensor]:
    """The small SAM's weights; leaves ``sam.pt`` in ``out``, and resumes from it."""
    from tqdm import tqdm

    torch.manual_seed(config.seed)
    sam = build_sam(SAM_NUMBERS).to(device)
    refiner = MaskRefiner(sam)
    sam.image_encoder.requires_grad_(True)
    path, first = out / "sam.pt", 0
    optimizer = torch.optim.AdamW(sam.parameters(), lr=config.lr, weight_decay=0.01)
    if path.exists():
        state = load_state(path)
        sam.load_state_dict(state["sam"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    pe = sam.prompt_encoder.get_dense_pe()
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, desc="sam")
    for step in bar:
        rng = np.random.default_rng([config.seed, 3, step])
        scenes = [sample_scene(rng) for _ in range(config.batch)]
        batch = torch.cat([refiner.preprocess(Image.fromarray(render(s, SIDE)))[0] for s in scenes]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * schedule(step, config.steps, 0.5, warmup=40)
        embeddings = sam.image_encoder(batch)
        loss = torch.zeros((), device=device)
        for scene, embedding in zip(scenes, embeddings, strict=True):
            for mask in visible_masks(scene, SIDE):
                truth = torch.from_numpy(mask)
                points, box, dense = _noisy_prompt(refiner, truth, rng)
                sparse, mixed = sam.prompt_encoder(
                    points=_on(device, points), boxes=_on(device, box), masks=_on(device, dense)
                )
                low, _ = sam.mask_decoder(embedding[None], pe, sparse, mixed, multimask_output=False)
                full = F.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
                loss = loss + mask_loss(full, truth[None].to(device))
        loss = loss / sum(len(s.things) for s in scenes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
        if step % 25 == 24:
            log.write(phase="sam", step=step + 1, loss=round(float(loss.detach()), 4))
        if step % 100 == 99 or step == config.steps - 1:
            atomic_save({"sam": sam.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path)
    return {k: v.detach().cpu().clone() for k, v in sam.state_dict().items()}
