"""Train the embedded heads on the frozen embedded LMM and the frozen encoder of its small SAM.

1. **Mask decoder** on cached attention maps (BCE + DICE).
2. **Decoder, refiner, text projection and keyword selector together** (F-LMM's sum of losses: BCE + DICE of both masks,
   BCE of the selector).

The two trained controls run the same recipe: ``random`` reads a random-init LMM of the same shape, ``image_only``
gets attention maps and hidden states of zeros, so that only the picture is left.

A killed run goes on from its last saved step to the very weights of an unbroken one: what a step sees is a function of
the seed and the step, and heads and optimiser are saved together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin import files
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import GroundingHeads, HeadsManifest, ImageEmbedding, save_heads
from flmm_plugin.json_lines import Log
from flmm_plugin.tiny import language, lmm
from flmm_plugin.tiny.features import SceneFeatures, extract
from flmm_plugin.tiny.optim import schedule
from flmm_plugin.tiny.runs import atomic_save, load_state
from flmm_plugin.tiny.scenes import sample_scene
from flmm_plugin.tiny.train_sam import SAM_NUMBERS, SIDE, SamConfig, mask_loss, train_sam

CONTROLS = ("random", "image_only")
SAVE_EVERY = 50  # steps between states that a killed run goes on from


@dataclass(frozen=True)
class HeadsConfig:
    """All knobs; the defaults made the shipped heads."""

    seed: int = 0
    sam: SamConfig = field(default_factory=SamConfig)
    scenes: int = 800
    decoder_steps: int = 1000
    decoder_batch: int = 24
    joint_steps: int = 400
    joint_batch: int = 4
    phrases_per_picture: int = 8
    lr: float = 1e-3
    decoder: dict[str, int] = field(default_factory=lambda: {"base_channels": 16, "upsample_to": 64})


def square_grid(side: int = SIDE) -> ImageGrid:
    """The token grid on a square picture of ``side`` pixels."""
    return ImageGrid.from_pad_then_resize(side, side, lmm.IMAGE_SIZE, lmm.PATCH)


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


@dataclass
class Stage:
    """A stretch of training steps that a killed run goes on with.

    Attributes:
        name: Of the stage, for the progress bar and the log.
        steps: How many.
        parameters: What learns.
        lr: Peak learning rate.
        rate: Share of ``lr`` at a step.
        loss: Of a step.
    """

    name: str
    steps: int
    parameters: list[nn.Parameter]
    lr: float
    rate: Callable[[int], float]
    loss: Callable[[int], Tensor]

    def run(self, heads: GroundingHeads, state_path: Path, log: Log) -> None:
        """All steps that ``state_path`` does not hold yet; weights and optimiser are saved there on the way."""
        from tqdm import tqdm

        optimizer = torch.optim.AdamW(self.parameters, lr=self.lr, weight_decay=0.01, betas=(0.9, 0.999))
        first = 0
        if state_path.exists():
            state = load_state(state_path)
            first = state["done"].get(self.name, 0)
            if state["stage"] == self.name:
                heads.load_state_dict(state["heads"])
                optimizer.load_state_dict(state["optimizer"])
        done = {} if not state_path.exists() else state["done"]
        bar = tqdm(range(first, self.steps), initial=first, total=self.steps, desc=self.name)
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * self.rate(step)
            loss = self.loss(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            optimizer.step()
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
            if step % 25 == 24:
                log.write(phase=self.name, step=step + 1, loss=round(float(loss.detach()), 4))
            if step % SAVE_EVERY == SAVE_EVERY - 1 or step == self.steps - 1:
                done = {**done, self.name: step + 1}
                content = {"stage": self.name, "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
                atomic_save({**content, "done": done}, state_path)


def train_heads(
    model: Any,
    sam_state: dict[str, Tensor],
    features: list[SceneFeatures],
    config: HeadsConfig,
    out: Path,
    log: Log,
    name: str = "heads",
    device: str = "cpu",
) -> GroundingHeads:
    """Both stages on cached features; the state for resuming is ``out/NAME_state.pt``.

    Args:
        model: The frozen LMM, for its numbers only.
        sam_state: Weights of the small SAM.
        features: What :func:`cached_features` read.
        config: Knobs.
        out: Work folder.
        log: Where progress goes.
        name: ``"heads"`` or one of :data:`CONTROLS`.
        device: Where the heads learn; the features stay in memory and are moved piece by piece.
    """
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
    heads.mask_refiner.sam.load_state_dict(sam_state)
    heads.to(device).train()
    stages = [joint_stage(heads, features, config, name, device)]
    if any(bool(item.attention.any()) for item in features):  # of blank maps there is nothing to learn on their own
        stages.insert(0, decoder_stage(heads, features, config, name, device))
    for stage in stages:
        stage.run(heads, out / f"{name}_state.pt", log)
    return heads.cpu().eval()


def decoder_stage(
    heads: GroundingHeads, features: list[SceneFeatures], config: HeadsConfig, name: str, device: str
) -> Stage:
    """The mask decoder alone, on phrases of all pictures mixed."""
    attention = torch.cat([item.attention for item in features])
    size = heads.mask_decoder(attention[:1].float().to(device)).shape[-1]
    targets = torch.cat([F.adaptive_avg_pool2d(item.masks[item.target].float(), size) for item in features])

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 6, step])
        chosen = torch.from_numpy(rng.integers(len(attention), size=config.decoder_batch))
        return mask_loss(heads.mask_decoder(attention[chosen].float().to(device)), targets[chosen].to(device))

    def rate(step: int) -> float:
        return schedule(step, config.decoder_steps, 0.6, warmup=30)

    parameters = list(heads.mask_decoder.parameters())
    return Stage(f"{name}: mask decoder", config.decoder_steps, parameters, 2 * config.lr, rate, loss)


def joint_stage(
    heads: GroundingHeads, features: list[SceneFeatures], config: HeadsConfig, name: str, device: str
) -> Stage:
    """All heads together, some phrases of a few pictures a step."""
    from PIL import Image

    refiner, selector = heads.mask_refiner, heads.keyword_selector
    assert refiner is not None
    assert selector is not None
    grid, embeddings = square_grid(), dict[int, ImageEmbedding]()

    def of_picture(number: int, rng: np.random.Generator) -> Tensor:
        item = features[number]
        if number not in embeddings:
            embeddings[number] = refiner.encode_image(Image.fromarray(item.pixels))
        chosen = rng.permutation(len(item.where))[: config.phrases_per_picture]
        truth = item.masks[item.target[chosen]].to(device)
        hidden = [item.hidden[int(i)].float().to(device) for i in chosen]
        out = heads(item.attention[chosen].float().to(device), hidden, embeddings[number], grid)
        keywords = F.binary_cross_entropy_with_logits(
            selector.logits(item.tokens.float().to(device)), item.keyword.float().to(device)
        )
        return mask_loss(out.decoder_logits, truth) + mask_loss(out.logits, truth) + keywords

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 7, step])
        numbers = rng.integers(len(features), size=config.joint_batch)
        return torch.stack([of_picture(int(number), rng) for number in numbers]).mean()

    def rate(step: int) -> float:
        return schedule(step, config.joint_steps, 1.0, warmup=20)

    parameters = [p for p in heads.parameters() if p.requires_grad]
    return Stage(f"{name}: all heads", config.joint_steps, parameters, 0.5 * config.lr, rate, loss)


def random_model(tokenizer: Any, seed: int = 12345) -> Any:
    """An untrained LMM of the embedded shape: the control that shows what attention owes to training."""
    return lmm.build_model(len(tokenizer), tokenizer.convert_tokens_to_ids(lmm.IMAGE_TOKEN), seed=seed)


def train(
    out: Path,
    config: HeadsConfig,
    model: Any,
    tokenizer: Any,
    names: tuple[str, ...] = ("heads", *CONTROLS),
    device: str = "cpu",
) -> Path:
    """The small SAM, all heads and controls (those already in ``out`` are kept); returns the path of the heads file."""
    files.make_folder(out)
    log = Log(out / "heads_log.jsonl")
    log.write(phase="config", **asdict(config))
    sam_state = train_sam(out, config.sam, log, device)
    for name in names:
        path = out / ("heads.safetensors" if name == "heads" else f"control_{name}.safetensors")
        if path.exists():
            continue
        source = random_model(tokenizer, config.seed + 12345) if name == "random" else model
        features = cached_features(source.to(device), tokenizer, config)
        if name == "image_only":
            features = blank(features)
        heads = train_heads(source, sam_state, features, config, out, log, name, device)
        save_heads(path, heads, storage="float16")
        (out / f"{name}_state.pt").unlink(missing_ok=True)
    return out / "heads.safetensors"


def train_from(out: Path, config: HeadsConfig, checkpoint: Path, device: str = "cpu") -> Path:
    """:func:`train` on a saved checkpoint, under a seal: the LMM's weights must come out as they went in."""
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    from flmm_plugin.seal import FrozenSeal

    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    seal = FrozenSeal(model)
    path = train(out, config, model, tokenizer, device=device)
    seal.verify()
    return path
