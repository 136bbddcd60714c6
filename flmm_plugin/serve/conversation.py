"""One visitor's conversation about a picture, and what can be asked of it.

The answer is streamed while the model's own ``generate`` runs. Everything else is looked up afterwards: the masks of
what the answer names, the mask of any word, the words that look at a place, and attention maps to mix.

Frames: masks and boxes are in the image frame; a region is ``(x0, y0, x1, y1)`` as fractions of the picture.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import TextIteratorStreamer

from flmm_plugin.errors import EmptyPhrase, UnknownArgument
from flmm_plugin.frozen_lmm import check_question
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.grounding import AttentionMaps
from flmm_plugin.records import ChatAnswer, Grounding
from flmm_plugin.text_checks import Span
from flmm_plugin.visual_cot import VisualCotAnswer, VisualCotOptions

Region = tuple[float, float, float, float]
Part = Literal["question", "answer"]
Maps = npt.NDArray[np.floating[Any]]
Chat = list[dict[str, Any]]

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")


def words_of(text: str) -> list[Span]:
    """Return the characters ``[start, end)`` of every word of a text.

    >>> words_of("A man's dog.")
    [(0, 1), (2, 7), (8, 11)]
    """
    return [match.span() for match in _WORD.finditer(text)]


@dataclass(eq=False)
class Turn:
    """One question and its answer.

    Attributes:
        question: The visitor's words, as typed.
        text: The grounded model's answer, decoded without special tokens.
        stock: The answer of the model's own ``generate`` to the same chat, made without any grounding.
        same: Whether both are the same token ids.
        seconds: Time until the answer was complete, and then until its masks were there.
        found: What the answer names, then words of it that the visitor asked for; spans are in ``text``.
        asked: Words of the question that the visitor asked for; spans are in ``question``.
    """

    question: str
    text: str
    stock: str
    same: bool
    seconds: tuple[float, float]
    found: list[Grounding] = field(default_factory=list)
    asked: list[Grounding] = field(default_factory=list)


@dataclass(frozen=True)
class Looking:
    """A word, and how much of its attention lies in a region.

    Attributes:
        turn: Number of the turn in which it stands, from 0.
        part: Which of its two texts.
        number: Number of the word in `words_of` that text, from 0.
        word: The word itself, as it is written there.
        lift: Share of the word's attention that lies in the region over the region's share of the picture, mean over
            all layers and heads; 1 where a word looks everywhere alike.
    """

    turn: int
    part: Part
    number: int
    word: str
    lift: float


class Conversation:
    """A chat of several turns about one picture.

    Args:
        lmm: The model, shared by all conversations; one of them uses it at a time.
        picture: The picture, RGB, any size.
        max_new_tokens: Length limit of an answer.
    """

    def __init__(self, lmm: GroundedLMM, picture: Image.Image, max_new_tokens: int = 64) -> None:
        self.lmm = lmm
        self.picture = picture
        self.max_new_tokens = max_new_tokens
        self.turns: list[Turn] = []
        self.phrases: list[Grounding] = []
        self._phrases: dict[str, AttentionMaps] = {}
        self._words: dict[tuple[int, Part], list[AttentionMaps]] = {}

    def ask(self, question: str) -> Iterator[str]:
        """Answer a question, and append the turn when all of it is there.

        Yields:
            The answer as far as it is written.

        Raises:
            EmptyPhrase: A question without words.
            BadText: The conversation is longer than the model's context.
        """
        check_question(question)
        chat = self._chat(len(self.turns), question)
        lmm, start = self.lmm, time.perf_counter()
        streamer = TextIteratorStreamer(lmm.backbone.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with ThreadPoolExecutor(max_workers=1) as pool:
            running = pool.submit(self._answer, chat, streamer)
            running.add_done_callback(lambda _: streamer.end())  # a model that fails must end the stream too
            text = ""
            for piece in streamer:
                text += piece
                yield text.strip()
            spoken = time.perf_counter()
            answer, found = running.result()
        masked = time.perf_counter()
        stock = lmm.chat(self.picture, chat, max_new_tokens=self.max_new_tokens)
        same = stock.token_ids == answer.token_ids
        times = (spoken - start, masked - start)
        self.turns.append(Turn(question, answer.text, stock.text, same, times, found))

    def find(self, phrase: str) -> Grounding:
        """Ground a phrase that the visitor types, and keep it among `phrases`."""
        (found,) = self.lmm.ground(self.picture, [phrase])
        self.phrases = [*(one for one in self.phrases if one.phrase != found.phrase), found]
        return found

    def find_word(self, turn: int, part: Part, word: int) -> Grounding:
        """Ground one word of a question or an answer, read where it stands, and keep it with its turn.

        A word inside something that is grounded already gives that.

        Args:
            turn: Number of the turn, from 0.
            part: Which of its two texts.
            word: Number of the word in `words_of` that text, from 0.

        Raises:
            UnknownArgument: There is no such word.
        """
        if not 0 <= turn < len(self.turns):
            raise UnknownArgument(f"there is no turn {turn}; {len(self.turns)} have been spoken")
        spoken = self.turns[turn]
        text, kept = (spoken.text, spoken.found) if part == "answer" else (spoken.question, spoken.asked)
        spans = words_of(text)
        if not 0 <= word < len(spans):
            raise UnknownArgument(f"the text has {len(spans)} words; there is no word {word}")
        known = [one for one in kept if one.span is not None and one.span[0] <= spans[word][0] < one.span[1]]
        if known:
            return known[0]
        (found,) = self.lmm.ground_text(self.picture, self._chat(turn), text, [spans[word]], where=part)
        kept.append(found)
        return found

    def shown(self, turn: int) -> list[Grounding]:
        """Return what is grounded of a turn, and the phrases that were typed."""
        spoken = self.turns[turn : turn + 1] if turn >= 0 else []
        return [*(one for some in spoken for one in (*some.found, *some.asked)), *self.phrases]

    def words_at(self, region: Region) -> list[Looking]:
        """Rank the words of the conversation by how much they look at a region.

        Raises:
            EmptyPhrase: Nothing has been said yet.
            UnknownArgument: No part of the region lies on the picture.
        """
        if not self.turns:
            raise EmptyPhrase("nothing has been said about the picture yet; ask something first")
        found: list[Looking] = []
        cells: Cells | None = None  # the same for all words: they look at one picture
        for at, turn in enumerate(self.turns):
            texts: list[tuple[Part, str]] = [("question", turn.question), ("answer", turn.text)]
            for part, text in texts:
                read = self._read(at, part, text)
                for number, (span, maps) in enumerate(zip(words_of(text), read, strict=True)):
                    cells = cells or Cells.of(maps.grid, region)
                    found.append(Looking(at, part, number, text[slice(*span)], cells.lift(maps.maps)))
        return sorted(found, key=lambda one: -one.lift)

    def _read(self, turn: int, part: Part, text: str) -> list[AttentionMaps]:
        """Return the attention maps of every word of a text, read once."""
        if (turn, part) not in self._words:
            spans = words_of(text)
            self._words[turn, part] = self.lmm.text_attention(self.picture, self._chat(turn), text, spans, where=part)
        return self._words[turn, part]

    def attention(self, phrase: str) -> AttentionMaps:
        """Return every attention map of a phrase."""
        if phrase not in self._phrases:
            self._phrases[phrase] = self.lmm.attention_maps(self.picture, phrase)
        return self._phrases[phrase]

    def look_twice(self, question: str, variant: Literal["v1", "v2"] = "v1") -> tuple[ChatAnswer, VisualCotAnswer]:
        """Answer directly, and after a second look at what the question is about."""
        check_question(question)
        direct = self.lmm.chat(self.picture, question, max_new_tokens=self.max_new_tokens)
        twice = self.lmm.visual_cot(self.picture, question, options=VisualCotOptions(variant=variant))
        return direct, twice

    def _answer(self, chat: Chat, streamer: TextIteratorStreamer) -> tuple[ChatAnswer, list[Grounding]]:
        """Answer, with the masks of what the answer names where the heads can choose words."""
        heads = self.lmm.heads
        if heads is None or heads.keyword_selector is None:
            plain = self.lmm.chat(self.picture, chat, max_new_tokens=self.max_new_tokens, streamer=streamer)
            return plain, []
        answer = self.lmm.grounded_chat(self.picture, chat, max_new_tokens=self.max_new_tokens, streamer=streamer)
        return ChatAnswer(answer.text, answer.token_ids), list(answer.groundings)

    def _chat(self, turn: int, question: str = "") -> Chat:
        """Return the chat up to a turn's question, in transformers' form; the picture stands in the first turn."""
        asked = [one.question for one in self.turns[: turn + 1]]
        if question:
            asked = [*asked, question]
        chat: Chat = []
        for number, words in enumerate(asked):
            content: list[dict[str, str]] = [{"type": "image"}] if number == 0 else []
            content.append({"type": "text", "text": words})
            chat.append({"role": "user", "content": content})
            if number < turn:
                said = {"type": "text", "text": self.turns[number].text}
                chat.append({"role": "assistant", "content": [said]})
        return chat


@dataclass(frozen=True)
class Cells:
    """A region on the grid of a model's image tokens.

    Attributes:
        inside: Share of each cell that lies in the region, ``float64[h, w]``, 0..1.
        whole: Share of each cell that lies on the picture, likewise.
    """

    inside: npt.NDArray[np.float64]
    whole: npt.NDArray[np.float64]

    @classmethod
    def of(cls, grid: ImageGrid, region: Region) -> Cells:
        """Measure a region, widened to one pixel at least.

        Args:
            grid: Grid of the image tokens.
            region: ``(x0, y0, x1, y1)``, fractions of the picture.

        Raises:
            UnknownArgument: It is no such region, or no part of it lies on what the model sees.
        """
        height, width = grid.image_height, grid.image_width
        x0, y0, x1, y1 = region
        if not (0 <= x0 <= x1 <= 1 and 0 <= y0 <= y1 <= 1):
            raise UnknownArgument(f"a region is x0, y0, x1, y1 as fractions of the picture, not {region}")
        left, top = min(int(x0 * width), width - 1), min(int(y0 * height), height - 1)
        right, bottom = max(left + 1, round(x1 * width)), max(top + 1, round(y1 * height))
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, top:bottom, left:right] = True
        masks[1] = True
        inside, whole = grid.image_to_grid(masks).double().numpy()
        if not inside.any():
            raise UnknownArgument("the model does not see this part of the picture (its preprocessing cuts it off)")
        return cls(inside, whole)

    def lift(self, maps: Maps) -> float:
        """Return how much more attention the region gets than its area would: 1 = as much.

        Args:
            maps: Attention maps of one phrase, ``[m, c, h, w]``; the mean over layers and heads counts.
        """
        total = (maps * self.whole).sum(axis=(-2, -1))
        share = (maps * self.inside).sum(axis=(-2, -1)) / np.maximum(total, 1e-12)
        area = self.inside.sum() / self.whole.sum()
        return float(share[total > 0].mean() / area) if (total > 0).any() else 0.0


def mixed(maps: Maps, chosen: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return the mean of chosen maps, each scaled to sum 1 first so that no loud head decides alone.

    Args:
        maps: ``[m, c, h, w]``, >= 0.
        chosen: ``(layer, head)`` of each; none: all of them.

    Returns:
        ``float64[h, w]``.
    """
    layers, heads = maps.shape[:2]
    picked = list(chosen) or [(layer, head) for layer in range(layers) for head in range(heads)]
    stack = np.stack([np.nan_to_num(np.asarray(maps[layer, head], np.float64)) for layer, head in picked])
    return np.asarray((stack / np.maximum(stack.sum(axis=(1, 2), keepdims=True), 1e-12)).mean(axis=0))
