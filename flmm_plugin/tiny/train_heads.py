"""Train the embedded heads on the frozen embedded LMM: a small SAM first, then mask decoder, then all heads together.

1. **SAM.** segment-anything's own modules at small numbers, trained to segment the world's objects from boxes, points
and coarse
   masks, as SAM was. It never meets the LMM. Its image encoder is frozen afterwards.
2. **Mask decoder** on cached attention maps (BCE + DICE).
3. **Decoder, refiner, text projection and keyword selector together** (F-LMM's sum of losses: BCE + DICE of both
masks, BCE of the
   selector).

The two trained controls run the same recipe: ``random`` reads a random-init LMM of the same shape, ``image_only``
gets attention maps and hidden states of zeros, so that only the picture is left.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import GroundingHeads, HeadsManifest, ImageEmbedding, MaskRefiner, build_sam, save_heads
from flmm_plugin.tiny import language, lmm
from flmm_plugin.tiny.features import SceneFeatures, extract
from flmm_plugin.tiny.train_lmm import Log, atomic_save, schedule
from flmm_plugin.tiny.world import render, sample_scene, visible_masks

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
CONTROLS = ("random", "image_only")


@dataclass
class HeadsConfig:
    """All knobs; the defaults made the shipped heads."""

    seed: int = 0
    sam_steps: int = 350
    sam_batch: int = 8
    sam_lr: float = 1e-3
    scenes: int = 600
    decoder_steps: int = 400
    decoder_batch: int = 24
    joint_steps: int = 260
    joint_batch: int = 4
    phrases_per_picture: int = 8
    lr: float = 1e-3
    decoder: dict[str, int] = field(default_factory=lambda: {"base_channels": 16, "upsample_to": 64})


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """BCE plus DICE (naive, eps 1) of ``[n, ...]`` logits against ``[n, ...]`` targets in 0..1."""
    flat, truth = logits.flatten(1), target.flatten(1).float()
    probability = flat.sigmoid()
    dice = 1 - (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
    return F.binary_cross_entropy_with_logits(flat, truth) + dice.mean()


def square_grid(side: int = SIDE) -> ImageGrid:
    """The token grid on a square picture of ``side`` pixels."""
    return ImageGrid.from_pad_then_resize(side, side, lmm.IMAGE_SIZE, lmm.PATCH)


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


def train_sam(out: Path, config: HeadsConfig, log: Log) -> dict[str, Tensor]:
    """The small SAM's weights; leaves ``sam.pt`` in ``out``, and resumes from it."""
    from tqdm import tqdm

    torch.manual_seed(config.seed)
    sam = build_sam(SAM_NUMBERS)
    refiner = MaskRefiner(sam)
    sam.image_encoder.requires_grad_(True)
    path, first = out / "sam.pt", 0
    optimizer = torch.optim.AdamW(sam.parameters(), lr=config.sam_lr, weight_decay=0.01)
    if path.exists():
        state = torch.load(path, weights_only=True)
        sam.load_state_dict(state["sam"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    pe = sam.prompt_encoder.get_dense_pe()
    bar = tqdm(range(first, config.sam_steps), initial=first, total=config.sam_steps, desc="sam")
    for step in bar:
        rng = np.random.default_rng([config.seed, 3, step])
        scenes = [sample_scene(rng) for _ in range(config.sam_batch)]
        batch = torch.cat([refiner.preprocess(render(s, SIDE))[0] for s in scenes])
        for group in optimizer.param_groups:
            group["lr"] = config.sam_lr * schedule(step, config.sam_steps, 0.5, warmup=40)
        embeddings = sam.image_encoder(batch)
        loss = torch.zeros(())
        for scene, embedding in zip(scenes, embeddings, strict=True):
            for mask in visible_masks(scene, SIDE):
                truth = torch.from_numpy(mask)
                points, box, dense = _noisy_prompt(refiner, truth, rng)
                sparse, mixed = sam.prompt_encoder(points=points, boxes=box, masks=dense)
                low, _ = sam.mask_decoder(embedding[None], pe, sparse, mixed, multimask_output=False)
                full = F.interpolate(low, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
                loss = loss + mask_loss(full, truth[None])
        loss = loss / sum(len(s.things) for s in scenes)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
        if step % 25 == 24:
            log.write(phase="sam", step=step + 1, loss=round(float(loss.detach()), 4))
        if step % 100 == 99 or step == config.sam_steps - 1:
            atomic_save({"sam": sam.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, path)
    return {k: v.detach().clone() for k, v in sam.state_dict().items()}


def cached_features(model: Any, tokenizer: Any, config: HeadsConfig) -> list[SceneFeatures]:
    """Features of the training scenes; the seed's stream differs from every stream of evaluation and LMM training."""
    from tqdm import tqdm

    pairs = (
        (sample_scene(np.random.default_rng([config.seed, 4, i])), np.random.default_rng([config.seed, 5, i]))
        for i in range(config.scenes)
    )
    return list(
        tqdm(extract(model, tokenizer, pairs, picture_size=SIDE), total=config.scenes, desc="read the frozen LMM")
    )


def blank(features: list[SceneFeatures]) -> list[SceneFeatures]:
    """The image-only control: nothing of the LMM is left."""
    for item in features:
        item.attention = torch.zeros_like(item.attention)
        item.hidden = [torch.zeros_like(h[:1]) for h in item.hidden]
        item.tokens = torch.zeros_like(item.tokens)
    return features


def train_heads(
    model: Any,
    sam_state: dict[str, Tensor],
    features: list[SceneFeatures],
    config: HeadsConfig,
    log: Log,
    name: str = "heads",
) -> GroundingHeads:
    """Stages 2 and 3 on cached features.

    Args:
        model: The frozen LMM, for its numbers only.
        sam_state: Weights of the small SAM.
        features: What :func:`cached_features` read.
        config: Knobs.
        log: Where progress goes.
        name: ``"heads"`` or one of :data:`CONTROLS`.
    """
    from tqdm import tqdm

    text = model.config.text_config
    manifest = HeadsManifest(
        backbone="flmm_tiny",
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        hidden_size=text.hidden_size,
        decoder=dict(config.decoder),
        sam=dict(SAM_NUMBERS),
        keyword_selector=True,
        prompt=language.REFER_PROMPT,
        data=f"procedural world, {config.scenes} scenes",
        notes={"role": name, "recipe": asdict(config)},
        created_by="flmm tiny train",
    )
    torch.manual_seed(config.seed)
    heads = GroundingHeads.build(manifest)
    assert heads.mask_refiner is not None
    assert heads.keyword_selector is not None
    heads.mask_refiner.sam.load_state_dict(sam_state)
    grid = square_grid()
    if any(bool(item.attention.any()) for item in features):  # of blank maps there is nothing to learn on their own
        _train_decoder(heads, features, config, log, name)
    embeddings: dict[int, ImageEmbedding] = {}
    parameters = [p for p in heads.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.01, betas=(0.9, 0.999))
    heads.train()
    from PIL import Image

    bar = tqdm(range(config.joint_steps), desc=f"{name}: all heads")
    for step in bar:
        rng = np.random.default_rng([config.seed, 7, step])
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * config.lr * schedule(step, config.joint_steps, 1.0, warmup=20)
        total = torch.zeros(())
        for number in rng.integers(len(features), size=config.joint_batch):
            item = features[int(number)]
            if int(number) not in embeddings:
                embeddings[int(number)] = heads.mask_refiner.encode_image(Image.fromarray(item.pixels))
            chosen = rng.permutation(len(item.where))[: config.phrases_per_picture]
            truth = item.masks[item.target[chosen]]
            out = heads(
                item.attention[chosen].float(),
                [item.hidden[int(i)].float() for i in chosen],
                embeddings[int(number)],
                grid,
            )
            selector = F.binary_cross_entropy_with_logits(
                heads.keyword_selector.logits(item.tokens.float()), item.keyword.float()
            )
            total = total + mask_loss(out.decoder_logits, truth) + mask_loss(out.logits, truth) + selector
        loss = total / config.joint_batch
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
        if step % 25 == 24:
            log.write(phase=f"{name}: joint", step=step + 1, loss=round(float(loss.detach()), 4))
    return heads.eval()


def _train_decoder(
    heads: GroundingHeads, features: list[SceneFeatures], config: HeadsConfig, log: Log, name: str
) -> None:
    """Stage 2: the mask decoder alone, on phrases of all pictures mixed."""
    from tqdm import tqdm

    attention = torch.cat([item.attention for item in features])
    size = heads.mask_decoder(attention[:1].float()).shape[-1]
    targets = torch.cat([F.adaptive_avg_pool2d(item.masks[item.target].float(), size) for item in features])
    optimizer = torch.optim.AdamW(heads.mask_decoder.parameters(), lr=2 * config.lr, weight_decay=0.01)
    heads.mask_decoder.train()
    bar = tqdm(range(config.decoder_steps), desc=f"{name}: mask decoder")
    for step in bar:
        rng = np.random.default_rng([config.seed, 6, step])
        chosen = torch.from_numpy(rng.integers(len(attention), size=config.decoder_batch))
        for group in optimizer.param_groups:
            group["lr"] = 2 * config.lr * schedule(step, config.decoder_steps, 0.6, warmup=30)
        loss = mask_loss(heads.mask_decoder(attention[chosen].float()), targets[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(heads.mask_decoder.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
        if step % 25 == 24:
            log.write(phase=f"{name}: decoder", step=step + 1, loss=round(float(loss.detach()), 4))


def random_model(tokenizer: Any, seed: int = 12345) -> Any:
    """An untrained LMM of the embedded shape: the control that shows what attention owes to training."""
    return lmm.build_model(len(tokenizer), tokenizer.convert_tokens_to_ids(lmm.IMAGE_TOKEN), seed=seed)


def train(
    out: Path, config: HeadsConfig, model: Any, tokenizer: Any, names: tuple[str, ...] = ("heads", *CONTROLS)
) -> Path:
    """All heads and controls (those already in ``out`` are kept); returns the path of the heads file."""
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "heads_log.jsonl")
    log.write(phase="config", **asdict(config))
    sam_state = train_sam(out, config, log)
    for name in names:
        path = out / ("heads.safetensors" if name == "heads" else f"control_{name}.safetensors")
        if path.exists():
            continue
        source = random_model(tokenizer, config.seed + 12345) if name == "random" else model
        features = cached_features(source, tokenizer, config)
        if name == "image_only":
            features = blank(features)
        save_heads(path, train_heads(source, sam_state, features, config, log, name), storage="float16")
    return out / "heads.safetensors"


def train_from(out: Path, config: HeadsConfig, checkpoint: Path) -> Path:
    """:func:`train` on a saved checkpoint, under a seal: the LMM's weights must come out as they went in."""
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    from flmm_plugin.seal import FrozenSeal

    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    seal = FrozenSeal(model)
    path = train(out, config, model, tokenizer)
    seal.verify()
    return path
