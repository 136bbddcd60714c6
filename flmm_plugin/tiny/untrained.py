"""Make the untrained twin of the embedded LMM: the control that shows what attention owes to training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flmm_plugin.tiny import tiny_path

#: Decides the weights.
SEED = 12345


def write_untrained(place: Path) -> Path:
    """Save an LMM of the embedded one's shape, tokenizer and processor that was never trained.

    Args:
        place: A folder named ``flmm_tiny``, as heads remember the name of the model that they were trained for.

    Returns:
        ``place``.
    """
    from transformers import AutoConfig, AutoProcessor, GenerationConfig

    model = fresh_model(AutoConfig.from_pretrained(tiny_path()), SEED)
    model.generation_config = GenerationConfig.from_pretrained(tiny_path())
    model.save_pretrained(place)
    AutoProcessor.from_pretrained(tiny_path()).save_pretrained(place)
    return place


def fresh_model(config: Any, seed: int) -> Any:
    """Return a LLaVA model with new weights, initialised so that a short training moves at once."""
    from transformers import LlavaForConditionalGeneration

    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    initialise(model)
    return model.eval()


@torch.no_grad()
def initialise(model: Any) -> None:
    """Fan-in scaled weights, quieter residual outputs, 2-D sine-cosine positions in the tower."""
    layers = model.config.text_config.num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            std = 1 / math.sqrt(fan_in)
            if name.endswith(("o_proj", "down_proj", "out_proj", "fc2")):
                std /= math.sqrt(2 * layers)
            module.weight.normal_(0, std)
            if module.bias is not None:
                module.bias.zero_()
    model.get_input_embeddings().weight.normal_(0, 0.06)
    position = next(m for n, m in model.named_modules() if n.endswith("position_embedding"))
    position.weight.zero_()
    grid = math.isqrt(len(position.weight) - 1)
    position.weight[1:] = 0.5 * sine_cosine(grid, position.weight.shape[1])
    clear_position(model)


@torch.no_grad()
def clear_position(model: Any) -> None:
    """Take the pictures' content out of the directions in which positions differ most.

    Patches fill all channels of the tower; a linear map read the place from that mixture to within two tokens only, too
    coarse to answer "where".
    """
    tower = model.model.vision_tower
    position = next(m for n, m in tower.named_modules() if n.endswith("position_embedding")).weight[1:]
    patch = next(m for n, m in tower.named_modules() if n.endswith("patch_embedding")).weight
    _, _, rows = torch.linalg.svd(position - position.mean(0), full_matrices=False)
    basis = rows[:8].T.contiguous()
    flat = patch.flatten(1)
    patch.copy_((flat - basis @ (basis.T @ flat)).view_as(patch))


def sine_cosine(grid: int, width: int) -> Tensor:
    """2-D sine-cosine position codes, ``[grid * grid, width]``, raster order."""
    quarter = width // 4
    frequency = torch.pi * torch.linspace(0.25, grid / 4, quarter)
    axis = (torch.arange(grid) + 0.5) / grid
    wave = torch.cat([torch.sin(axis[:, None] * frequency), torch.cos(axis[:, None] * frequency)], 1)
    return torch.cat([wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)], -1).reshape(
        grid * grid, width
    )
