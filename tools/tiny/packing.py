"""Many turns behind one picture: the batches that the embedded LMM learns from and is read with."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flmm_plugin.tiny import language
from flmm_plugin.tiny.scenes import Scene, render
from tools.tiny import lmm


def picture(scene: Scene, rng: np.random.Generator) -> Tensor:
    """The scene as the processor would hand it over, ``[3, 112, 112]``, normalised; outlines vary as after resizing."""
    pixels = render(scene, lmm.IMAGE_SIZE, softness=float(rng.uniform(0.8, 1.6)))
    return (torch.from_numpy(pixels).permute(2, 0, 1).float() / 255 - 0.5) / 0.25


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
        block, length = self.block, self.block.shape[1]
        same = (block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0)
        causal = torch.ones(length, length, dtype=torch.bool, device=block.device).tril()
        mask = same & causal & (block[:, None, :] >= 0)
        return (mask | torch.eye(length, dtype=torch.bool, device=block.device)).unsqueeze(1)

    def to(self, device: torch.device) -> Packed:
        """The same on another device."""
        return Packed(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})


KINDS = ("caption", "refer", "thought", *language.QUESTION_KINDS)


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

    def pack(self, scenes: list[list[language.Turn]], *, multiple: int = 32, listing: float = 1.0) -> Packed:
        """Pack each scene's turns behind its picture and pad to a common length.

        Args:
            scenes: The turns of each.
            multiple: Of which the common length is one.
            listing: Weight of a token of captions and lists of referring expressions.
        """
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
                if turn.kind in ("caption", "refer"):
                    a_weights = [listing] * len(a)
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
