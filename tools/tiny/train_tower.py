"""Stage 1 of the embedded LMM: the vision tower learns what is at nine named places, from facts, not from masks.

The facts go on teaching in stage 2 (:class:`TokenProbe`), so that a thing can be looked for by its shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin.json_lines import Log
from flmm_plugin.tiny.scenes import COLORS, SHAPES, SIZES, Scene, sample_scene
from tools.tiny import lmm
from tools.tiny.optim import optimizers, schedule
from tools.tiny.packing import picture
from tools.tiny.runs import atomic_save, load_state

if TYPE_CHECKING:
    from tools.tiny.train_lmm import TrainConfig

_COLOR_INDEX = {c: i + 1 for i, c in enumerate(COLORS)}
_SHAPE_INDEX = {s: i + 1 for i, s in enumerate(SHAPES)}
_SIZE_INDEX = {s: i + 1 for i, s in enumerate(SIZES)}
_CHOICES = [1 + len(COLORS), 1 + len(SHAPES), 1 + len(SIZES)]  # 0: nothing there


class PlaceProbe(nn.Module):
    """Reads the tower's tokens around each of the nine named places; discarded after stage 1.

    The only spatial knowledge it is given is what the words mean: "top left" is a soft round region there. (A probe
    that had to learn where the places are stayed at chance for 11 thousand pictures.)
    """

    region: Tensor

    def __init__(self, width: int, spread: float = 0.12) -> None:
        super().__init__()
        self.register_buffer("region", regions(spread))
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, sum(_CHOICES))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``tokens [b, h*w, d]`` -> logits of colour, shape, size at each place, ``[b, 9, 1 + choices]``, 0 = none."""
        pooled = self.region @ F.gelu(self.hidden(self.norm(tokens)))
        color, shape, size = self.out(pooled * 4).split(_CHOICES, -1)
        return color, shape, size


class TokenProbe(nn.Module):
    """Reads colour, shape and size from *every* image token near a place, linearly; discarded after stage 2.

    A colour is in each token of a thing; a shape is in none of them alone, and a language model that looks for "the
    star" can only find tokens that say so. The facts are those of stage 1: what is at which place, no pixel.
    """

    region: Tensor

    def __init__(self, width: int, spread: float = 0.09) -> None:
        super().__init__()
        self.register_buffer("region", regions(spread))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sum(_CHOICES))

    def forward(self, tokens: Tensor, facts: Tensor) -> Tensor:
        """Mean cross-entropy of the facts ``[b, 9, 3]`` at the tokens ``[b, h*w, d]`` around each place."""
        parts = self.out(self.norm(tokens)).split(_CHOICES, -1)
        weight = 1 + 2 * (facts[..., 0] > 0).float()
        loss = tokens.new_zeros(())
        for j, part in enumerate(parts):
            said = part.log_softmax(-1)  # [b, h*w, choices]
            near = torch.einsum("pt,btc->bpc", self.region, said)
            loss = loss - (near.gather(-1, facts[..., j : j + 1]).squeeze(-1) * weight).sum() / weight.sum()
        return loss


def regions(spread: float) -> Tensor:
    """A soft round region for each of the nine places, ``[9, h*w]``; each sums to one. ``spread``: in picture sides."""
    axis = (torch.arange(lmm.GRID) + 0.5) / lmm.GRID
    centre = (torch.arange(3) + 0.5) / 3
    near = torch.softmax(-((axis[None] - centre[:, None]) ** 2) / (2 * spread**2), -1)
    return torch.einsum("iy,jx->ijyx", near, near).reshape(9, -1)


def scene_facts(scenes: list[Scene]) -> Tensor:
    """What is where: ``[b, 9, 3]`` indices of colour, shape, size (0 = nothing there)."""
    facts = torch.zeros(len(scenes), 9, 3, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            facts[i, thing.place] = torch.tensor(
                [_COLOR_INDEX[thing.color], _SHAPE_INDEX[thing.shape], _SIZE_INDEX[thing.size]]
            )
    return facts


def train_tower(model: Any, config: TrainConfig, out: Path, log: Log) -> None:
    """Stage 1. Leaves ``tower.pt`` in ``out`` and the trained tower in ``model``."""
    from tqdm import tqdm

    done, state_path = out / "tower.pt", out / "tower_state.pt"
    tower = model.model.vision_tower
    if done.exists():
        tower.load_state_dict(load_state(done))
        return
    device = next(tower.parameters()).device
    probe = PlaceProbe(tower.config.hidden_size).to(device)
    named = [*tower.named_parameters(), *((f"probe.{n}", p) for n, p in probe.named_parameters())]
    opts = optimizers(named, config.tower_lr, 0.02)
    first = 0
    if state_path.exists():
        state = load_state(state_path)
        tower.load_state_dict(state["tower"])
        probe.load_state_dict(state["probe"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        first = state["step"]
    tower.train()
    bar = tqdm(range(first, config.tower_steps), initial=first, total=config.tower_steps, desc="tower")
    for step in bar:
        rng = np.random.default_rng([config.seed, 1, step])
        scenes = [sample_scene(rng, max_things=5) for _ in range(config.tower_batch)]
        pixels = torch.stack([picture(s, rng) for s in scenes]).to(device)
        facts = scene_facts(scenes).to(device)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = config.tower_lr * schedule(step, config.tower_steps, 0.5, warmup=30)
        logits = probe(tower(pixels).last_hidden_state[:, 1:])
        present = facts[..., 0] > 0
        loss = torch.zeros((), device=device)
        for j, part in enumerate(logits):
            each = F.cross_entropy(part.flatten(0, 1), facts[..., j].flatten(), reduction="none").view(present.shape)
            loss = loss + (each * (1 + 2 * present)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        if step % 20 == 19 or step == config.tower_steps - 1:
            hit = [float((part.argmax(-1) == facts[..., j])[present].float().mean()) for j, part in enumerate(logits)]
            log.write(phase="tower", step=step + 1, loss=float(loss.detach()), color=hit[0], shape=hit[1], size=hit[2])
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}", shape=f"{hit[1]:.2f}")
        if step % 200 == 199:
            atomic_save(
                {
                    "tower": tower.state_dict(),
                    "probe": probe.state_dict(),
                    "opts": [o.state_dict() for o in opts],
                    "step": step + 1,
                },
                state_path,
            )
    tower.eval()
    atomic_save(tower.state_dict(), done)
