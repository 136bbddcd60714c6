"""What the heads are trained on: attention and hidden states of phrases, read from the frozen LMM.

Shapes: n phrases, t tokens of a phrase, m layers, c heads, h x w image-token grid, d hidden size, S side of a picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.tiny import language, lmm
from flmm_plugin.tiny.packing import Packer, picture
from flmm_plugin.tiny.scenes import Scene, render, visible_masks


@dataclass
class SceneFeatures:
    """Everything the heads need of one picture.

    Attributes:
        pixels: ``uint8 [S, S, 3]``, the picture.
        attention: ``[n, m*c, h, w]`` float16, mean over each phrase's tokens, not normalised.
        hidden: n x ``[t_i, m, d]`` float16.
        masks: ``bool [k, S, S]``, what is seen of each object.
        target: ``[n]``, index of each phrase's object in ``masks``.
        where: n of ``"caption"``, ``"refer"`` or ``"question"``: the text the phrase stood in.
        tokens: ``[a, d]`` float16, last hidden states of all answer tokens; ``keyword`` ``bool [a]``: inside a phrase.
    """

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    attention: Tensor
    hidden: list[Tensor]
    masks: Tensor
    target: Tensor
    where: list[str]
    tokens: Tensor
    keyword: Tensor


def scene_turns(scene: Scene, rng: np.random.Generator) -> list[language.Turn]:
    """Caption, referring expressions and five questions: phrases in captions and in questions alike."""
    kinds = ("color", "size", "shape", "where", "yes_no")
    return [
        language.caption(scene),
        language.refer_list(scene, rng),
        *(language.question(scene, k, rng) for k in kinds),
    ]


def token_span(offsets: list[tuple[int, int]], start: int, end: int) -> list[int]:
    """Tokens that overlap the characters ``[start, end)``."""
    return [i for i, (a, b) in enumerate(offsets) if a < end and b > start and b > a]


@torch.no_grad()
def extract(
    model: Any,
    tokenizer: Any,
    scenes: Iterable[tuple[Scene, np.random.Generator]],
    *,
    batch: int = 8,
    picture_size: int = 128,
) -> Iterator[SceneFeatures]:
    """Read the frozen model: one packed forward pass per ``batch`` scenes, rows beside the stock kernel."""
    packer = Packer(tokenizer)
    buffer: list[tuple[Scene, np.random.Generator]] = []
    for pair in scenes:
        buffer.append(pair)
        if len(buffer) == batch:
            yield from _extract_batch(model, tokenizer, packer, buffer, picture_size)
            buffer = []
    if buffer:
        yield from _extract_batch(model, tokenizer, packer, buffer, picture_size)


def _extract_batch(
    model: Any, tokenizer: Any, packer: Packer, pairs: list[tuple[Scene, np.random.Generator]], picture_size: int
) -> Iterator[SceneFeatures]:
    scenes = [scene for scene, _ in pairs]
    turns = [scene_turns(scene, rng) for scene, rng in pairs]
    device = next(model.parameters()).device
    packed = packer.pack(turns).to(device)
    pixels = torch.stack([picture(scene, rng) for scene, rng in pairs]).to(device)
    patches = lmm.GRID * lmm.GRID
    first = len(packer.prefix)
    columns = torch.arange(first, first + patches)
    plans = [_plan(tokenizer, packer, item, first + patches) for item in turns]
    rows = [
        torch.tensor(sorted({t for _, _, span in phrases for t in span} | set(answers)))
        for phrases, answers, _ in plans
    ]
    capture = AttentionCapture(model.model.language_model, rows, [columns] * len(pairs))
    features = lmm.see(model, pixels)
    embeds = model.get_input_embeddings()(packed.ids)
    embeds = torch.cat([embeds[:, :first], features, embeds[:, first + patches :]], 1)
    with capture.active():
        model.model.language_model(
            inputs_embeds=embeds, attention_mask=packed.mask(), position_ids=packed.position, use_cache=False
        )
    for b, (phrases, answers, keyword) in enumerate(plans):
        at = {int(slot): i for i, slot in enumerate(rows[b])}
        attention, hidden = capture.attention(b).cpu(), capture.hidden(b).cpu()
        maps = torch.stack([attention[[at[t] for t in span]].mean(0).flatten(0, 1) for _, _, span in phrases])
        yield SceneFeatures(
            render(scenes[b], picture_size),
            maps.view(len(phrases), -1, lmm.GRID, lmm.GRID).half(),
            [hidden[[at[t] for t in span]].half() for _, _, span in phrases],
            torch.from_numpy(np.stack(visible_masks(scenes[b], picture_size))),
            torch.tensor([index for _, index, _ in phrases]),
            [where for where, _, _ in phrases],
            hidden[[at[t] for t in answers], -1].half(),
            torch.tensor(keyword),
        )


def _plan(
    tokenizer: Any, packer: Packer, turns: list[language.Turn], head: int
) -> tuple[list[tuple[str, int, list[int]]], list[int], list[bool]]:
    """Slots of every phrase (where, object, slots), slots of all answer tokens, and which of those lie in a phrase."""
    phrases: list[tuple[str, int, list[int]]] = []
    answers: list[int] = []
    keyword: list[bool] = []
    slot = head
    for turn in turns:
        text = f"USER: <image>\n{turn.question} ASSISTANT:"
        coded = tokenizer(text, return_offsets_mapping=True)
        image_at = coded["input_ids"].index(packer.image_id)
        question_offsets = coded["offset_mapping"][image_at + 1 :]
        answer_offsets = tokenizer(turn.answer, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        answer_at = slot + len(question_offsets)
        shift = text.index(turn.question)
        inside: set[int] = set()
        for part, start, end, index in turn.mentions:
            if part == "question":
                span = [slot + i for i in token_span(question_offsets, start + shift, end + shift)]
            else:
                local = token_span(answer_offsets, start, end)
                inside.update(local)
                span = [answer_at + i for i in local]
            phrases.append((turn.kind if part == "answer" else "question", index, span))
        if turn.kind != "refer":
            answers += range(answer_at, answer_at + len(answer_offsets))
            keyword += [i in inside for i in range(len(answer_offsets))]
        slot = answer_at + len(answer_offsets) + 1
    return phrases, answers, keyword
