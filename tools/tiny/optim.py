"""Optimisers and the learning-rate schedule of the embedded trainers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix updates are orthogonalised (Newton-Schulz), scaled to AdamW's usual step size.

    torch's own ``Muon`` iterates in bfloat16, which CPUs without bfloat16 units run an order of magnitude slower than
    this float32 version that treats all matrices of one shape as a batch.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(tuple(p.shape), []).append(p)
            for shape, params in by_shape.items():
                moved = []
                for p in params:
                    gradient = p.grad
                    assert gradient is not None
                    buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                    buffer.lerp_(gradient, 1 - group["momentum"])
                    moved.append(gradient.lerp(buffer, group["momentum"]))
                update = orthogonalise(torch.stack(moved))
                for p, u in zip(params, update, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(u, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration (quintic, Muon's coefficients) towards orthogonal matrices, ``[k, r, c]`` each way."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x: Tensor = matrices if wide else matrices.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x if wide else x.transpose(1, 2)


def optimizers(named: list[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings, norms, biases and convolutions."""
    hidden = [p for n, p in named if p.ndim == 2 and not any(s in n for s in ("embed", "position", "query", "lm_head"))]
    chosen = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in chosen]
    return [
        Muon(hidden, lr, weight_decay),
        torch.optim.AdamW(rest, lr=lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def schedule(step: int, total: int, decay_share: float, warmup: int = 100) -> float:
    """Warm-up, plateau, then linear decay to 2 % over the last ``decay_share`` of the run."""
    if step < warmup:
        return (step + 1) / warmup
    start = total * (1 - decay_share)
    return 1.0 if step < start else max(0.02, 1 - 0.98 * (step - start) / (total - start))
