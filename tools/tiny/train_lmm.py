"""Train the embedded LMM from nothing, in LLaVA's own order: the tower first, then all together.

1. **Tower.** From scene *facts* (which colour, shape and size is at which of nine places; no pixel label) through a
   small pooling probe that is thrown away afterwards. It stands in for the contrastive pre-training of real towers.
2. **Chat.** Next-token loss on captions, referring expressions, questions and answers. Many turns share one picture
   through a block mask: the picture's tokens are computed once, every turn sees the picture and itself. The tower goes
   on learning at half the rate, and the facts of stage 1 go on teaching it on pictures of their own, token by token.

Nothing here sees a mask. The curriculum advances on accuracy, not on the clock. Everything is resumable: state is
written atomically, and the data of step ``s`` is a function of the seed and ``s``, on whichever device it runs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin import files
from flmm_plugin.json_lines import Log
from flmm_plugin.tiny.scenes import sample_scene
from tools.tiny import lmm
from tools.tiny.optim import optimizers, schedule
from tools.tiny.packing import KINDS, Packed, Packer, picture
from tools.tiny.runs import atomic_save, load_state
from tools.tiny.train_tower import TokenProbe, scene_facts, train_tower
from tools.tiny.turns import choice, drill_turns, sample_turns

SAVE_EVERY = 100  # steps between states that a killed run goes on from


@dataclass(frozen=True)
class Stage:
    """One rung of the curriculum: how full scenes are, what is asked, which accuracy opens the next rung.

    ``drills``: share of steps whose scenes are asked a dozen short questions, most of them about things that must be
    looked for by what they are; ``choices``: share of steps of nothing but multiple choice. ``listing``: weight of the
    tokens of captions and of lists of referring expressions; the order and form of the latter are drawn, so that once
    they are learnt their gradient is mostly noise.
    """

    max_things: int
    kinds: tuple[str, ...]
    advance_at: float
    max_share: float
    drills: float = 0.0
    choices: float = 0.0
    listing: float = 1.0


@dataclass
class TrainConfig:
    """All knobs. ``steps`` sets the length of the schedule; the defaults are the final recipe.

    The shipped model was made on the way to it: docs/decisions/0004 says where its run differed.
    """

    seed: int = 0
    tower_steps: int = 520
    tower_batch: int = 64
    tower_lr: float = 2e-3
    steps: int = 7700
    batch: int = 8
    lr: float = 1.2e-3
    weight_decay: float = 0.05
    tower_share: float = 0.5
    facts_weight: float = 1.0
    facts_batch: int = 24
    decay_share: float = 0.17
    turns_per_scene: int = 7
    stages: tuple[Stage, ...] = field(
        default_factory=lambda: (
            Stage(2, ("color", "shape", "where", "size"), 0.88, 0.09),
            Stage(3, ("color", "shape", "where", "size", "count", "yes_no", "yes_no", "choice"), 0.80, 0.21),
            Stage(
                4,
                ("color", "shape", "size", *["where"] * 3, *["count"] * 2, *["yes_no"] * 2, *["choice"] * 4),
                2.0,
                1.0,
                drills=0.5,
                choices=0.35,
                listing=0.3,
            ),
        )
    )


def chat_loss(model: Any, pixels: Tensor, packed: Packed) -> tuple[Tensor, dict[str, tuple[int, int]]]:
    """Weighted next-token loss, and per kind the count of answer tokens predicted right and in all."""
    features = lmm.see(model, pixels)
    embeds = model.get_input_embeddings()(packed.ids)
    start = int((packed.ids[0] == model.config.image_token_id).nonzero()[0])
    embeds = torch.cat([embeds[:, :start], features, embeds[:, start + features.shape[1] :]], 1)
    hidden = model.model.language_model(
        inputs_embeds=embeds, attention_mask=packed.mask(), position_ids=packed.position, use_cache=False
    ).last_hidden_state
    wanted = packed.weight > 0
    logits = model.lm_head(hidden[wanted])
    targets, weight, kinds = packed.targets[wanted], packed.weight[wanted], packed.kinds[wanted]
    loss = (F.cross_entropy(logits, targets, reduction="none") * weight).sum() / weight.sum()
    hit = logits.argmax(-1) == targets
    counts = {
        name: (int(hit[kinds == i].sum()), int((kinds == i).sum()))
        for i, name in enumerate(KINDS)
        if (kinds == i).any()
    }
    return loss, counts


def train_chat(model: Any, tokenizer: Any, config: TrainConfig, out: Path, log: Log) -> None:
    """Stage 2. Leaves ``chat.pt`` (whole state) in ``out`` and the trained model in ``model``."""
    from tqdm import tqdm

    state_path = out / "chat.pt"
    model.train()
    device = next(model.parameters()).device
    named = list(model.named_parameters())
    tower = [(n, p) for n, p in named if "vision_tower" in n]
    rest = [(n, p) for n, p in named if "vision_tower" not in n]
    torch.manual_seed(config.seed)
    probe = TokenProbe(model.config.text_config.hidden_size).to(device)
    opts: list[torch.optim.Optimizer] = [
        *optimizers(rest, config.lr, config.weight_decay),
        *optimizers(tower, config.lr, config.weight_decay),
        torch.optim.AdamW(probe.parameters(), lr=config.lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    shares = (1.0, 1.0, config.tower_share, config.tower_share, 1.0)
    packer = Packer(tokenizer)
    first, stage_index, stage_start = 0, 0, 0
    running: dict[str, float] = {}
    if state_path.exists():
        state = load_state(state_path)
        model.load_state_dict(state["model"])
        probe.load_state_dict(state["probe"])
        for opt, saved in zip(opts, state["opts"], strict=True):
            opt.load_state_dict(saved)
        first, stage_index, stage_start, running = (state[k] for k in ("step", "stage", "stage_start", "running"))
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, desc="chat")
    for step in bar:
        rng = np.random.default_rng([config.seed, 2, step])
        stage = config.stages[stage_index]
        scenes = [sample_scene(rng, max_things=stage.max_things) for _ in range(config.batch)]
        # Whole batches of one sort, so that short turns are not padded to the length of long ones.
        sort = rng.random()
        if sort < stage.drills:
            turns = [drill_turns(s, rng) for s in scenes]
        elif sort < stage.drills + stage.choices:
            turns = [[choice(s, rng, (2, 4, 4), told=0.25) for _ in range(6)] for s in scenes]
        else:
            turns = [sample_turns(s, stage.kinds, rng, config.turns_per_scene) for s in scenes]
        packed = packer.pack(turns, listing=stage.listing).to(device)
        pixels = torch.stack([picture(s, rng) for s in scenes]).to(device)
        rate = schedule(step, config.steps, config.decay_share)
        for opt, share in zip(opts, shares, strict=True):
            for group in opt.param_groups:
                group["lr"] = config.lr * rate * share
        loss, counts = chat_loss(model, pixels, packed)
        shown = [sample_scene(rng, max_things=stage.max_things) for _ in range(config.facts_batch)]
        seen = lmm.see(model, torch.stack([picture(s, rng) for s in shown]).to(device))
        loss = loss + config.facts_weight * probe(seen, scene_facts(shown).to(device))
        loss.backward()
        nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        for kind, (hits, n) in counts.items():
            running[kind] = 0.97 * running.get(kind, hits / n) + 0.03 * hits / n
        if step % 25 == 24:
            log.write(
                phase="chat",
                step=step + 1,
                stage=stage_index,
                loss=round(float(loss.detach()), 4),
                length=packed.ids.shape[1],
                **{k: round(v, 3) for k, v in running.items()},
            )
            bar.set_postfix(loss=f"{float(loss.detach()):.3f}", stage=stage_index)
        asked = [running[k] for k in set(stage.kinds) if k in running]
        ready = len(asked) > 0 and sum(asked) / len(asked) > stage.advance_at and step - stage_start > 150
        if stage_index + 1 < len(config.stages) and (ready or step > stage.max_share * config.steps):
            stage_index, stage_start = stage_index + 1, step
        if step % SAVE_EVERY == SAVE_EVERY - 1 or step == config.steps - 1:
            atomic_save(
                {
                    "model": model.state_dict(),
                    "probe": probe.state_dict(),
                    "opts": [o.state_dict() for o in opts],
                    "step": step + 1,
                    "stage": stage_index,
                    "stage_start": stage_start,
                    "running": running,
                },
                state_path,
            )
    model.eval()


def _tokenizer(folder: Path) -> Any:
    """The run's tokenizer: made once, then read, so that a resumed run cannot number its words anew."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").exists():
        lmm.build_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def train(out: Path, config: TrainConfig, device: str = "cpu") -> Path:
    """Run both stages (or what is left of them) on ``device`` and save the checkpoint folder ``out/lmm``."""
    files.make_folder(out)
    log = Log(out / "lmm_log.jsonl")
    tokenizer = _tokenizer(out / "tokenizer")
    model = lmm.build_model(len(tokenizer), tokenizer.convert_tokens_to_ids(lmm.IMAGE_TOKEN), seed=config.seed)
    model.to(device)
    log.write(phase="config", **asdict(config))
    train_tower(model, config, out, log)
    train_chat(model, tokenizer, config, out, log)
    lmm.save(model.cpu(), lmm.build_processor(tokenizer), out / "lmm")
    return out / "lmm"
