"""Train the embedded LMM from nothing, in LLaVA's own order: the tower first, then all together.

1. **Tower.** From scene *facts* (which colour, shape and size is at which of nine places; no pixel label) through a
   small pooling probe that is thrown away afterwards. It stands in for the contrastive pre-training of real towers.
2. **Chat.** Next-token loss on captions, referring expressions, questions and answers. Many turns share one picture
   through a block mask: the picture's tokens are computed once, every turn sees the picture and itself. The tower goes
   on learning at a quarter of the rate.

Nothing here sees a mask. The curriculum advances on accuracy, not on the clock. Everything is resumable: state is
written atomically, and the data of step ``s`` is a function of the seed and ``s``.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_plugin.tiny import language, lmm
from flmm_plugin.tiny.world import COLORS, SHAPES, SIZES, Scene, render, sample_scene

SAVE_EVERY = 100  # steps between states that a killed run goes on from
_COLOR_INDEX = {c: i + 1 for i, c in enumerate(COLORS)}
_SHAPE_INDEX = {s: i + 1 for i, s in enumerate(SHAPES)}
_SIZE_INDEX = {s: i + 1 for i, s in enumerate(SIZES)}


@dataclass(frozen=True)
class Stage:
    """One rung of the curriculum: how full scenes are, what is asked, which accuracy opens the next rung.

    ``drills``: share of steps whose scenes are asked a dozen short questions, most of them about things that must be
    looked for by what they are; ``choices``: share of steps of nothing but multiple choice.
    """

    max_things: int
    kinds: tuple[str, ...]
    advance_at: float
    max_share: float
    drills: float = 0.0
    choices: float = 0.0


@dataclass
class TrainConfig:
    """All knobs. ``steps`` sets the length of the schedule; the defaults are the final recipe.

    The shipped model was made on the way to it: docs/decisions/0004 says where its run differed.
    """

    seed: int = 0
    tower_steps: int = 520
    tower_batch: int = 64
    tower_lr: float = 2e-3
    steps: int = 5000
    batch: int = 8
    lr: float = 1.2e-3
    weight_decay: float = 0.05
    tower_share: float = 0.25
    decay_share: float = 0.4
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
                drills=0.35,
                choices=0.25,
            ),
        )
    )


def picture(scene: Scene, rng: np.random.Generator) -> Tensor:
    """The scene as the processor would hand it over, ``[3, 112, 112]``, normalised; outlines vary as after resizing."""
    pixels = render(scene, lmm.IMAGE_SIZE, softness=float(rng.uniform(0.8, 1.6)))
    return (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25


class PlaceProbe(nn.Module):
    """Reads the tower's tokens around each of the nine named places; discarded after stage 1.

    The only spatial knowledge it is given is what the words mean: "top left" is a soft round region there. (A probe
    that had to learn where the places are stayed at chance for 11 thousand pictures.)
    """

    region: Tensor

    def __init__(self, width: int, spread: float = 0.12) -> None:
        super().__init__()
        axis = (torch.arange(lmm.GRID) + 0.5) / lmm.GRID
        centre = (torch.arange(3) + 0.5) / 3
        near = torch.softmax(-((axis[None] - centre[:, None]) ** 2) / (2 * spread**2), -1)
        self.register_buffer("region", torch.einsum("iy,jx->ijyx", near, near).reshape(9, -1))
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.out = nn.Linear(2 * width, 1 + len(COLORS) + 1 + len(SHAPES) + 1 + len(SIZES))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``tokens [b, h*w, d]`` -> logits of colour, shape, size at each place, ``[b, 9, 1 + choices]``, 0 = none."""
        pooled = self.region @ F.gelu(self.hidden(self.norm(tokens)))
        color, shape, size = self.out(pooled * 4).split([1 + len(COLORS), 1 + len(SHAPES), 1 + len(SIZES)], -1)
        return color, shape, size


def scene_facts(scenes: list[Scene]) -> Tensor:
    """What is where: ``[b, 9, 3]`` indices of colour, shape, size (0 = nothing there)."""
    facts = torch.zeros(len(scenes), 9, 3, dtype=torch.long)
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            facts[i, thing.place] = torch.tensor(
                [_COLOR_INDEX[thing.color], _SHAPE_INDEX[thing.shape], _SIZE_INDEX[thing.size]]
            )
    return facts


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


def atomic_save(state: Any, path: Path) -> None:
    """Write beside, then rename: a killed run leaves the last good file."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


class Log:
    """Lines of JSON, one per report; the committed training log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()

    def write(self, **row: Any) -> None:
        """Append one row and echo it."""
        row["seconds"] = round(time.monotonic() - self.start, 1)
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")


def train_tower(model: Any, config: TrainConfig, out: Path, log: Log) -> None:
    """Stage 1. Leaves ``tower.pt`` in ``out`` and the trained tower in ``model``."""
    from tqdm import tqdm

    done, state_path = out / "tower.pt", out / "tower_state.pt"
    tower = model.model.vision_tower
    if done.exists():
        tower.load_state_dict(torch.load(done, weights_only=True))
        return
    probe = PlaceProbe(tower.config.hidden_size)
    named = [*tower.named_parameters(), *((f"probe.{n}", p) for n, p in probe.named_parameters())]
    opts = optimizers(named, config.tower_lr, 0.02)
    first = 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
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
        pixels = torch.stack([picture(s, rng) for s in scenes])
        facts = scene_facts(scenes)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = config.tower_lr * schedule(step, config.tower_steps, 0.5, warmup=30)
        logits = probe(tower(pixels).last_hidden_state[:, 1:])
        present = facts[..., 0] > 0
        loss = torch.zeros(())
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


@dataclass
class Packed:
    """Turns of each scene packed behind one picture.

    ``ids``, ``targets``, ``kinds``: ``[b, l]`` (targets -100 where not predicted; kinds index of the turn's kind or
    -1), ``weight``
    ``[b, l]``, ``block`` ``[b, l]`` (0 = picture prefix, -1 = padding), ``position`` ``[b, l]``.
    """

    ids: Tensor
    targets: Tensor
    weight: Tensor
    block: Tensor
    position: Tensor
    kinds: Tensor

    def mask(self) -> Tensor:
        """Bool ``[b, 1, l, l]``: the prefix and the own turn, causally."""
        block = self.block
        same = (block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0)
        causal = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool).tril()
        mask = same & causal & (block[:, None, :] >= 0)
        return (mask | torch.eye(block.shape[1], dtype=torch.bool)).unsqueeze(1)


KINDS = ("caption", "refer", *language.QUESTION_KINDS)


class Packer:
    """Turns -> token ids exactly as the processor and chat template would write them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.image_id = tokenizer.convert_tokens_to_ids(lmm.IMAGE_TOKEN)
        ids = tokenizer("USER: <image>\n")["input_ids"]
        self.prefix = ids[: ids.index(self.image_id)]
        self._tails: dict[str, list[int]] = {}

    def question_ids(self, question: str) -> list[int]:
        """Ids from right after the picture to the last of ``ASSISTANT:``."""
        if question not in self._tails:
            if len(self._tails) > 200_000:
                self._tails.clear()
            ids = self.tokenizer(f"USER: <image>\n{question} ASSISTANT:")["input_ids"]
            self._tails[question] = ids[ids.index(self.image_id) + 1 :]
        return self._tails[question]

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of the answer and the end token."""
        if answer not in self._tails:
            self._tails[answer] = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return [*self._tails[answer], self.tokenizer.eos_token_id]

    def pack(self, scenes: list[list[language.Turn]], *, multiple: int = 32) -> Packed:
        """Pack each scene's turns behind its picture and pad to a common length."""
        patches = lmm.GRID * lmm.GRID
        rows: list[tuple[list[int], list[int], list[float], list[int], list[int], list[int]]] = []
        for turns in scenes:
            ids = [*self.prefix, *([self.image_id] * patches)]
            head = len(ids)
            targets, weight, block, kinds = [-100] * head, [0.0] * head, [0] * head, [-1] * head
            position = list(range(head))
            for number, turn in enumerate(turns, 1):
                q, a = self.question_ids(turn.question), self.answer_ids(turn.answer)
                both = q + a
                kind = KINDS.index(turn.kind)
                ids += both
                q_weight = 0.15 if turn.kind in ("color", "size", "shape", "where") else 0.0
                # Of a one-word answer the word counts, not the end token that always follows it.
                a_weights = [1.0] * len(a) if len(a) > 3 else [3.0] * (len(a) - 1) + [0.5]
                # row t predicts token t + 1 of the same turn
                targets += [*both[1:], -100]
                weight += [q_weight] * (len(q) - 1) + a_weights + [0.0]
                kinds += [-1] * (len(q) - 1) + [kind] * len(a) + [-1]
                block += [number] * len(both)
                position += list(range(head, head + len(both)))
            rows.append((ids, targets, weight, block, position, kinds))
        length = math.ceil(max(len(r[0]) for r in rows) / multiple) * multiple

        def pad(index: int, fill: float, dtype: torch.dtype) -> Tensor:
            return torch.tensor([r[index] + [fill] * (length - len(r[index])) for r in rows], dtype=dtype)

        return Packed(
            pad(0, 0, torch.long),
            pad(1, -100, torch.long),
            pad(2, 0, torch.float),
            pad(3, -1, torch.long),
            pad(4, 0, torch.long),
            pad(5, -1, torch.long),
        )


def sample_turns(scene: Scene, stage: Stage, rng: np.random.Generator, count: int) -> list[language.Turn]:
    """A caption, a list of referring expressions and ``count`` questions of the stage's kinds."""
    turns = [language.caption(scene), language.refer_list(scene, rng)]
    kinds = list(stage.kinds)
    order = rng.permutation(len(kinds))
    for i in range(count):
        kind = kinds[int(order[i % len(kinds)])]
        if kind == "choice":  # fewer options are easier to tell apart at first
            turns.append(_choice(scene, rng, (2, 3, 4, 4), told=0.35))
        else:
            turns.append(language.question(scene, kind, rng))
    return turns


def _choice(scene: Scene, rng: np.random.Generator, options: tuple[int, ...], told: float) -> language.Turn:
    number, given_away = int(rng.choice(options)), bool(rng.random() < told)
    return language.choice_question(scene, rng, options=number, told=given_away)


def drill_turns(scene: Scene, rng: np.random.Generator) -> list[language.Turn]:
    """A dozen short questions: things to be looked for by what they are (half of them: where), numbers, yes or no."""
    turns = [language.lookup_question(scene, rng, kinds=("where",)) for _ in range(4)]
    turns += [language.lookup_question(scene, rng) for _ in range(4)]
    turns += [language.count_question(scene, rng) for _ in range(2)]
    turns += [language.yes_no_question(scene, rng, short_share=1.0) for _ in range(2)]
    return turns


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
    named = list(model.named_parameters())
    tower = [(n, p) for n, p in named if "vision_tower" in n]
    rest = [(n, p) for n, p in named if "vision_tower" not in n]
    opts = [*optimizers(rest, config.lr, config.weight_decay), *optimizers(tower, config.lr, config.weight_decay)]
    shares = (1.0, 1.0, config.tower_share, config.tower_share)
    packer = Packer(tokenizer)
    first, stage_index, stage_start = 0, 0, 0
    running: dict[str, float] = {}
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
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
            turns = [[_choice(s, rng, (2, 4, 4), told=0.1) for _ in range(6)] for s in scenes]
        else:
            turns = [sample_turns(s, stage, rng, config.turns_per_scene) for s in scenes]
        packed = packer.pack(turns)
        pixels = torch.stack([picture(s, rng) for s in scenes])
        rate = schedule(step, config.steps, config.decay_share)
        for opt, share in zip(opts, shares, strict=True):
            for group in opt.param_groups:
                group["lr"] = config.lr * rate * share
        loss, counts = chat_loss(model, pixels, packed)
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


def train(out: Path, config: TrainConfig) -> Path:
    """Run both stages (or what is left of them) and save the checkpoint folder ``out/lmm``."""
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "lmm_log.jsonl")
    tokenizer = _tokenizer(out / "tokenizer")
    model = lmm.build_model(len(tokenizer), tokenizer.convert_tokens_to_ids(lmm.IMAGE_TOKEN), seed=config.seed)
    log.write(phase="config", **asdict(config))
    train_tower(model, config, out, log)
    train_chat(model, tokenizer, config, out, log)
    lmm.save(model, lmm.build_processor(tokenizer), out / "lmm")
    return out / "lmm"
