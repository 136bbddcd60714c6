"""Ground words that are given: phrases, spans of a text, pieces of a text, or those that the keyword selector chooses.

All of them take one path: a `Passage` is written behind a chat, the frozen model reads both once
(`flmm_plugin.capture`), and the heads turn the attention of each phrase into a mask (`PhraseGrounder.masks`).

Shapes: t tokens, m layers, c heads per layer, d hidden size, h x w image-token grid, H x W original picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from flmm_plugin.backbones.base import Backbone, EncodedChat, Generated, Messages
from flmm_plugin.capture import (
    CapturedPassage,
    capture_alternatives,
    capture_answers,
    capture_passages,
    check_merge,
    last_states,
)
from flmm_plugin.context_length import check_characters, check_tokens
from flmm_plugin.errors import CaptureError, EmptyPhrase, HeadsMismatch, UnknownArgument
from flmm_plugin.frozen_lmm import FrozenLMM
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import GroundingHeads, KeywordSelector
from flmm_plugin.heads.manifest import PROMPT, SEPARATOR
from flmm_plugin.heads_choice import no_heads_text
from flmm_plugin.images import ImageSource, open_image
from flmm_plugin.passages import GivenText, Keyword, Passage, decoded_offsets, span_tokens, text_offsets
from flmm_plugin.records import Grounding, Groundings
from flmm_plugin.resampling import PlacedMaps
from flmm_plugin.text_checks import Span, check_text, checked_phrases, checked_spans, has_words, trimmed


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The attention of one phrase's tokens to the picture.

    Attributes:
        maps: ``float32[m, c, h, w]``, grid frame: share of attention, not normalised over the picture. Families with
            two views have 2 c per layer: the coarse view's heads, then the fine one's.
        grid: The place of the cells on the original picture.
    """

    maps: npt.NDArray[np.float32]
    grid: ImageGrid


class PhraseGrounder(FrozenLMM):
    """A frozen backbone, and heads that turn its attention into masks of given words.

    Attributes:
        heads: The heads, None for chat and attention maps only.
        merge: ``mean`` or ``max`` over a phrase's tokens.
        searched: Whether heads were looked for (``auto``), so that without them none exist.

    Args:
        backbone: The frozen model with its processor.
        heads: Heads that were trained for it; None: chat and attention maps only.
        merge: ``mean`` or ``max`` over a phrase's tokens; None: as the heads were trained.
        preprocessing: ``stock`` or ``paper``, the preprocessing of pictures before grounding, set on the backbone;
            None: as the heads were trained.

    Raises:
        HeadsMismatch: Heads of another backbone's shape.
    """

    searched = False

    def __init__(
        self,
        backbone: Backbone,
        heads: GroundingHeads | None = None,
        *,
        merge: str | None = None,
        preprocessing: str | None = None,
    ) -> None:
        super().__init__(backbone)
        self._asked = (merge, preprocessing)
        self.use(heads)

    def use(self, heads: GroundingHeads | None) -> None:
        """Ground with these heads from now on; chat is not touched by them.

        Raises:
            HeadsMismatch: Heads of another backbone's shape.
        """
        merge, preprocessing = self._asked
        if heads is not None:
            heads.manifest.check_fits(self.backbone.facts)
            preprocessing = preprocessing or heads.manifest.preprocessing or None
        self.backbone.preprocess(preprocessing)
        self.backbone.rows = "attention" if heads is None else heads.manifest.rows
        self.merge = merge or (heads.manifest.merge if heads is not None else "mean")
        check_merge(self.merge)
        self.heads = heads

    def ground(
        self,
        image: ImageSource,
        phrases: Iterable[str],
        *,
        prompt: str | None = None,
        joint: bool = True,
        refine: bool = True,
    ) -> Groundings:
        """Find each phrase in a picture.

        Args:
            image: The picture; encoded once however many phrases there are.
            phrases: What to look for, as plain text: ``</s>`` in it is four characters, no token of the model's own.
                One string is refused, since its letters would be phrases.
            prompt: The user's turn before the phrases; None: the heads' own.
            joint: All phrases in one answer, "phrase one. phrase two.", so that later ones see earlier ones (the
                paper's protocol). False: each phrase as an answer of its own, picture and prompt still computed once.
            refine: Use the mask refiner; False: the mask decoder's masks.

        Returns:
            One grounding per phrase, in order.

        Raises:
            BadImage: The picture cannot be read.
            BadText: A phrase is no text, or with the picture they are longer than the model's context.
            EmptyPhrase: A phrase without words.
        """
        if joint:
            return self.ground_many([image], [phrases], prompt=prompt, refine=refine)[0]
        self.need_heads()
        passages = [self._phrases([phrase]) for phrase in checked_phrases(phrases)]
        return self._each_alone(image, passages, prompt, refine)

    def ground_many(
        self,
        images: Sequence[ImageSource],
        phrases: Sequence[Iterable[str]],
        *,
        prompt: str | None = None,
        refine: bool = True,
        batch_size: int = 8,
    ) -> list[Groundings]:
        """Ground phrases in several pictures, ``batch_size`` at a time in one forward pass; arguments as of `ground`.

        A picture without phrases gets no groundings. One that is given several times, as the same object with one
        phrase each, is read once with the prompt. On a CPU with ``batch_size=1`` a phrase's mask does not depend on
        what else is asked, to the last bit: it is read behind the prompt by itself, however many share the prompt.
        """
        self.need_heads()
        if batch_size < 1:
            raise UnknownArgument(f"batch_size is a number of pictures from 1 on, not {batch_size!r}")
        found = [Groundings() for _ in images]
        if len(images) != len(phrases):
            raise EmptyPhrase(f"{len(images)} images but {len(phrases)} lists of phrases; give one list for each image")
        # All of them before the first picture is looked at: a bad phrase costs no run.
        named = [checked_phrases(some) for some in phrases]
        passages = {index: self._phrases(some) for index, some in enumerate(named) if some}
        alone: dict[int, list[int]] = {}
        for index in passages:
            alone.setdefault(id(images[index]) if len(named[index]) == 1 else -index - 1, []).append(index)
        for indices in alone.values():
            if len(named[indices[0]]) == 1 and (len(indices) > 1 or batch_size == 1):
                each = [passages.pop(index) for index in indices]
                for index, one in zip(indices, self._each_alone(images[indices[0]], each, prompt, refine), strict=True):
                    found[index] = Groundings([one])
        asked = list(passages)
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            pictures = [open_image(images[index]) for index in batch]
            read = self._read_phrases(pictures, [passages[index] for index in batch], prompt)
            for index, captured, picture in zip(batch, read, pictures, strict=True):
                found[index] = self.masks(captured, picture, refine)
        return found

    def ground_text(
        self,
        image: ImageSource,
        messages: str | Messages,
        text: str,
        spans: Iterable[Span],
        *,
        where: Literal["answer", "question"] = "answer",
        refine: bool = True,
    ) -> Groundings:
        """Ground parts of a text that is given, e.g. an answer from elsewhere or the question itself.

        Args:
            image: The picture that the text is about.
            messages: The chat, ending with the user's turn; a string is the user's words.
            text: ``where="answer"``: the text that follows the chat. ``where="question"``: words of the chat after the
                image.
            spans: Characters ``[start, end)`` of ``text``, one pair per phrase.
            where: Which of the two ``text`` is.
            refine: Use the mask refiner, if there is one.

        Raises:
            BadText: ``text`` or a span is of another type, or text and picture are longer than the model's context.
            EmptyPhrase: A span without words, or a question that the chat does not contain.
            UnknownArgument: ``where`` is neither of the two.
        """
        self.need_heads()
        read = self._read_text(image, messages, text, spans, where)
        return Groundings() if read is None else self.masks(*read, refine)

    def text_attention(
        self,
        image: ImageSource,
        messages: str | Messages,
        text: str,
        spans: Iterable[Span],
        *,
        where: Literal["answer", "question"] = "answer",
    ) -> list[AttentionMaps]:
        """Return the attention maps of parts of a given text; needs no heads. Arguments and errors as of `ground_text`.

        Returns:
            One for each span, in order; all of them are read in one pass.
        """
        read = self._read_text(image, messages, text, spans, where)
        return [] if read is None else self._maps(read[0])

    def _read_text(
        self, image: ImageSource, messages: str | Messages, text: str, spans: Iterable[Span], where: str
    ) -> tuple[CapturedPassage, Image.Image] | None:
        """Capture parts of a given text; return None where there are none."""
        if where not in ("answer", "question"):
            raise UnknownArgument(f"where is 'answer' or 'question', not {where!r}")
        check_text(text)
        spans = checked_spans(spans, text)
        if not spans:
            return None
        if where == "question":
            picture = open_image(image)
            encoded = self.encode([messages], [picture])
            passage = question_passage(self.backbone.tokenizer, encoded, text, spans)
        else:
            check_characters(self.backbone, text)
            passage = Passage.of_spans(self.backbone.tokenizer, text, spans)
            check_tokens(self.backbone, len(passage.ids))
            picture = open_image(image)
            encoded = self.encode([messages], [picture], self._template if isinstance(messages, str) else "")
            encoded = encoded.extended([passage.ids], self.backbone.pad_id)
        (captured,) = capture_passages(self.backbone, encoded, [passage], self.merge)
        return captured, picture

    def ground_pieces(self, texts: Sequence[GivenText], *, refine: bool = True) -> list[Groundings]:
        """Ground the named pieces of each text; one forward pass for all of them.

        Args:
            texts: Texts about one picture each; one without grounded pieces gets no groundings.
            refine: Use the mask refiner, if there is one.

        Returns:
            Per text one grounding per entry of ``grounded``, in that order, with its span in the text.

        Raises:
            BadImage: A picture cannot be read.
            BadText: A piece is no text, or a text with its picture is longer than the model's context.
            EmptyPhrase: A piece without words is to be grounded, or there is no such piece.
            HeadsMismatch: The model was loaded to chat only.
        """
        self.need_heads()
        found = [Groundings() for _ in texts]
        asked = [index for index, one in enumerate(texts) if one.grounded]
        if not asked:
            return found
        passages = []
        for index in asked:
            one = texts[index]
            one.check()
            check_characters(self.backbone, one.text)
            passages.append(Passage.of_pieces(self.backbone.tokenizer, one.pieces, one.grounded))
        pictures = [open_image(texts[index].image) for index in asked]
        questions = [texts[index].question for index in asked]
        encoded = self._extended(questions, pictures, [passage.ids for passage in passages])
        read = capture_passages(self.backbone, encoded, passages, self.merge)
        for index, captured, picture in zip(asked, read, pictures, strict=True):
            found[index] = self.masks(captured, picture, refine)
        return found

    def select_keywords(self, texts: Sequence[GivenText], *, threshold: float | None = None) -> list[list[Keyword]]:
        """Choose words that name things in the picture, in texts that are given as answers.

        The keyword selector reads each text tokenised as a whole: the tokens of its pieces would tell it where a phrase
        begins.

        Args:
            texts: Texts about one picture each; ``grounded`` plays no role.
            threshold: Score above which a token is picked; None: the heads' own.

        Returns:
            Per text its keywords, in order; adjacent picked tokens are one.

        Raises:
            BadImage: A picture cannot be read.
            BadText: A piece is no text, or a text with its picture is longer than the model's context.
            EmptyPhrase: A text without words.
            HeadsMismatch: There are no heads, or they have no keyword selector.
        """
        selector, limit = self.need_selector(threshold)
        if not texts:
            return []
        tokens = []
        for one in texts:
            one.check()
            check_characters(self.backbone, one.text)
            if not has_words(one.text):
                raise EmptyPhrase(f"a text without words ({one.text!r}) has no keywords; leave it out")
            tokens.append(text_offsets(self.backbone.tokenizer, one.text))
        pictures = [open_image(one.image) for one in texts]
        encoded = self._extended([one.question for one in texts], pictures, [ids for ids, _ in tokens])
        states = last_states(self.backbone, encoded, [len(ids) for ids, _ in tokens])
        found = []
        for one, (ids, offsets), hidden in zip(texts, tokens, states, strict=True):
            chosen = chosen_phrases(selector, hidden, ids, one.text, offsets, limit)
            found.append([Keyword(phrase, span) for phrase, span in chosen.phrases if span is not None])
        return found

    def ground_generated(
        self,
        encoded: EncodedChat,
        generated: Generated,
        passages: Sequence[Passage],
        pictures: Sequence[Image.Image],
        *,
        refine: bool = True,
    ) -> list[Groundings]:
        """Ground phrases of answers that this model has generated (`begin_answers`).

        Args:
            encoded: The prompts, padded on the left.
            generated: The answers to these prompts.
            passages: Per answer, a passage whose ``ids`` are the answer's.
            pictures: One for each answer, RGB.
            refine: Use the mask refiner, if there is one.
        """
        if not any(passage.groups for passage in passages):
            return [Groundings() for _ in passages]
        read = capture_answers(self.backbone, encoded, generated, passages, self.merge)
        return [self.masks(captured, picture, refine) for captured, picture in zip(read, pictures, strict=True)]

    def attention_maps(self, image: ImageSource, phrase: str, *, prompt: str | None = None) -> AttentionMaps:
        """Return the maps that the heads would read for one phrase; needs no heads."""
        passage = self._phrases([phrase])
        (captured,) = self._read_phrases([open_image(image)], [passage], prompt)
        return self._maps(captured)[0]

    def _maps(self, captured: CapturedPassage) -> list[AttentionMaps]:
        """Lay the attention of each phrase on the token grid, ``[m, c, h, w]`` each.

        Layer by layer: families with two views differ in whether heads read them view by view or layer by layer.
        """
        layers = [
            self.backbone.attention_maps(captured.rows[:, layer : layer + 1], captured.image)
            for layer in range(captured.rows.shape[1])
        ]
        stacked = torch.stack(layers, dim=1).float().cpu().numpy()
        return [AttentionMaps(maps, captured.image.grid) for maps in stacked]

    def need_heads(self) -> GroundingHeads:
        """Return the heads.

        Raises:
            HeadsMismatch: The model was loaded to chat only.
        """
        if self.heads is None:
            raise HeadsMismatch(
                no_heads_text(self.backbone.name, self.backbone.facts.revision)
                if self.searched
                else f"{self.backbone.name} was loaded to chat only; pass heads=... to from_pretrained"
            )
        return self.heads

    def need_selector(self, threshold: float | None = None) -> tuple[KeywordSelector, float]:
        """Return the keyword selector and the threshold to use: the one that is given, or the heads' own.

        Raises:
            HeadsMismatch: There are no heads, or they have no keyword selector.
        """
        heads = self.need_heads()
        if heads.keyword_selector is None:
            raise HeadsMismatch(
                "these heads have no keyword selector (released checkpoints have none); use heads that were trained "
                "with one, or pass the spans to ground_text"
            )
        return heads.keyword_selector, heads.manifest.keyword_threshold if threshold is None else threshold

    @torch.no_grad()
    def masks(self, captured: CapturedPassage, picture: Image.Image, refine: bool) -> Groundings:
        """Turn the captured phrases of one picture into masks, in one call of the heads.

        Raises:
            CaptureError: The attention is not finite.
        """
        heads = self.need_heads()
        if not captured.passage.groups:
            return Groundings()
        if not bool(torch.isfinite(captured.rows).all()):
            raise CaptureError(
                f"the attention of {self.backbone.name} is not finite in {self.backbone.dtype}; load it with "
                "dtype='bfloat16' or 'float32'"
            )
        maps = captured.maps(self.backbone).to(heads.device)
        hidden = [states.to(heads.device) for states in captured.states()]
        out = heads(maps, hidden, picture, captured.image.grid, refine)
        final, coarse = out.final.cpu(), out.coarse.cpu()
        # One after the other: of all pixels, only those of one phrase are in memory at a time.
        return Groundings(
            Grounding.of(phrase, partial(_pixels, final.one(index)), partial(_pixels, coarse.one(index)), span, picture)
            for index, (phrase, span) in enumerate(captured.passage.phrases)
        )

    def _each_alone(
        self, image: ImageSource, passages: Sequence[Passage], prompt: str | None, refine: bool
    ) -> Groundings:
        """Ground passages of one phrase, each an answer of its own behind the same picture and prompt."""
        picture = open_image(image)
        encoded = self.encode([self._prompt(prompt)], [picture], self._template)
        # Several at once save a GPU time; on a CPU they would move the last digits and save little.
        at_once = 1 if self.backbone.device.type == "cpu" else 8
        read = capture_alternatives(self.backbone, encoded, passages, self.merge, at_once=at_once)
        return Groundings(found for captured in read for found in self.masks(captured, picture, refine))

    def _prompt(self, prompt: str | None) -> str:
        if prompt is not None:
            check_text(prompt, "the prompt")
            return prompt
        return self.heads.manifest.prompt if self.heads is not None else PROMPT

    @property
    def _separator(self) -> str:
        return self.heads.manifest.separator if self.heads is not None else SEPARATOR

    @property
    def _template(self) -> str:
        """Text around prompt and picture where this package writes the turn; chats are in the model's own template."""
        return self.heads.manifest.template if self.heads is not None else ""

    def _phrases(self, phrases: list[str]) -> Passage:
        """Write phrases as one answer."""
        check_characters(self.backbone, "".join(phrases))
        passage = Passage.of_phrases(self.backbone.tokenizer, phrases, self._separator)
        check_tokens(self.backbone, len(passage.ids))
        return passage

    def _extended(
        self, prompts: Sequence[str], pictures: Sequence[Image.Image], texts: Sequence[Sequence[int]]
    ) -> EncodedChat:
        """Encode prompts in the heads' template, with token ids behind each."""
        return self.encode(prompts, pictures, self._template).extended(texts, self.backbone.pad_id)

    def _read_phrases(
        self, pictures: list[Image.Image], passages: list[Passage], prompt: str | None
    ) -> list[CapturedPassage]:
        """Run a batch once; rows of all phrase tokens, separators left out."""
        encoded = self._extended([self._prompt(prompt)] * len(pictures), pictures, [one.ids for one in passages])
        return capture_passages(self.backbone, encoded, passages, self.merge)


def _pixels(logits: PlacedMaps) -> npt.NDArray[np.float32]:
    """Return the logits of a single map at every pixel, ``float32[H, W]``."""
    pixels: npt.NDArray[np.float32] = logits.image()[0].numpy()
    return pixels


def question_passage(tokenizer: Any, encoded: EncodedChat, text: str, spans: Sequence[Span]) -> Passage:
    """Find a text in the part of an encoded chat that follows its image, and the tokens of each span of the text.

    Raises:
        EmptyPhrase: The chat does not contain the text there, or a span has no words or no token.
    """
    first = int(encoded.image_tokens[0][-1].slots.max()) + 1
    ids = encoded.inputs["input_ids"][0, first:].tolist()
    written, offsets = decoded_offsets(tokenizer, ids)
    place = written.rfind(text)
    if place < 0 or not text:
        raise EmptyPhrase(
            f"the chat does not contain {text!r} after the image; words before the image cannot look at it"
        )
    groups = [span_tokens(written, offsets, (place + start, place + end)) for start, end in spans]
    words = [trimmed(text, span) for span in spans]
    return Passage(ids, groups, [(text[start:end], (start, end)) for start, end in words])


@torch.no_grad()
def chosen_phrases(
    selector: KeywordSelector,
    hidden: Tensor,
    ids: Sequence[int],
    text: str,
    offsets: Sequence[Span],
    threshold: float,
    special: Iterable[int] = (),
) -> Passage:
    """Make phrases of the runs of adjacent tokens that the keyword selector picks.

    Args:
        selector: The keyword selector that was trained for the backbone.
        hidden: States of the text's tokens after the final norm, ``[t, d]``.
        ids: Token ids of the text, t of them.
        text: The text that the ids decode to.
        offsets: Characters ``[start, end)`` of each token.
        threshold: Score above which a token is picked.
        special: Ids that are never picked: the end token, though it may score, names nothing.
    """
    scores = selector(hidden.to(next(selector.parameters()).device)).cpu()
    never = set(special)
    scores = scores.masked_fill(torch.tensor([token in never for token in ids], dtype=torch.bool), float("-inf"))
    runs = selector.select(scores, threshold)
    return Passage.of_tokens(ids, text, offsets, [range(start, end) for start, end in runs])
