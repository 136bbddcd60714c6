"""Texts that are given, not generated: ground some of their pieces, or let the keyword selector choose words in them.

A panoptic narrative is fed as the model's answer and its phrases are grounded in the same pass (paper, sections 4.2 and
A1.3). The narrative comes in pieces, phrases and what stands between them, and each piece is tokenised alone, as the
paper's models read them; pieces are joined as they are, no space is added. The keyword selector instead reads a text
that is tokenised as a whole: the pieces' own tokens would tell it where a phrase begins.

Several pictures go through the model in one forward pass. Shapes: t tokens, m layers, d hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image

from flmm_plugin.backbones.base import EncodedChat, Messages
from flmm_plugin.context import check_characters
from flmm_plugin.errors import BadText, EmptyPhrase, HeadsMismatch
from flmm_plugin.heads import GroundingHeads
from flmm_plugin.images import ImageSource, open_image
from flmm_plugin.phrases import pieces_tokens, text_offsets
from flmm_plugin.reading import Reading, ground_reading, keywords
from flmm_plugin.records import Grounding
from flmm_plugin.replay import read_sequence
from flmm_plugin.words import Span, check_text, has_words, trimmed

if TYPE_CHECKING:
    from flmm_plugin.grounded_lmm import GroundedLMM


@dataclass(frozen=True, eq=False)
class GivenText:
    """A text that stands as the answer to a question about one picture.

    Attributes:
        image: The picture.
        question: The user's words before the text, written in the template that the heads were trained with.
        pieces: The text, cut where its phrases begin and end.
        grounded: Indices of the pieces that are to be grounded.
    """

    image: ImageSource
    question: str
    pieces: tuple[str, ...]
    grounded: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """The pieces, joined as they are."""
        return "".join(self.pieces)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Characters ``[start, end)`` of each grounded piece in `text`, without white space at the ends."""
        starts = [0]
        for piece in self.pieces:
            starts.append(starts[-1] + len(piece))
        return tuple(trimmed(self.text, (starts[index], starts[index + 1])) for index in self.grounded)


@dataclass(frozen=True)
class Keyword:
    """Words that the keyword selector chose in a text.

    Attributes:
        phrase: The words.
        span: Their characters ``[start, end)`` in the text.
    """

    phrase: str
    span: Span


def ground_pieces(lmm: GroundedLMM, asked: Sequence[GivenText], *, refine: bool = True) -> list[list[Grounding]]:
    """Ground the named pieces of each text; one forward pass for all of them.

    Args:
        lmm: With heads.
        asked: The texts.
        refine: Use the mask refiner.

    Returns:
        Per text one grounding per entry of ``grounded``, in that order, with its span in the text.

    Raises:
        BadImage: A picture cannot be read.
        BadText: A piece is no text, or a text with its picture is longer than the model's context.
        EmptyPhrase: A piece without words is to be grounded, or there is no such piece.
        HeadsMismatch: The model was loaded to chat only.
    """
    heads = _heads(lmm)
    found: list[list[Grounding]] = [[] for _ in asked]
    todo = [place for place, one in enumerate(asked) if one.grounded]
    if not todo:
        return found
    written = [_written(lmm, asked[place]) for place in todo]
    pictures = [open_image(asked[place].image) for place in todo]
    encoded = _encoded(lmm, [asked[place] for place in todo], pictures, [ids for ids, _ in written])
    slots = [
        torch.tensor([index for group in groups for index in group]) + encoded.length - len(ids)
        for ids, groups in written
    ]
    columns = [tokens[0].slots for tokens in encoded.image_tokens]
    capture = read_sequence(lmm.backbone, encoded, slots, columns)
    for item, place in enumerate(todo):
        text, spans = asked[place].text, asked[place].spans
        sizes = tuple(len(group) for group in written[item][1])
        phrases = tuple((text[start:end], (start, end)) for start, end in spans)
        tokens = encoded.image_tokens[item][0]
        reading = Reading(capture.attention(item), capture.hidden(item), sizes, phrases, tokens)
        found[place] = ground_reading(reading, pictures[item], lmm.backbone, heads, merge=lmm.merge, refine=refine)
    return found


def select_keywords(
    lmm: GroundedLMM, asked: Sequence[GivenText], *, threshold: float | None = None
) -> list[list[Keyword]]:
    """What the keyword selector takes for things in the picture, in texts that are given as answers.

    Args:
        lmm: With heads that have a keyword selector.
        asked: The texts; ``grounded`` plays no role.
        threshold: Score above which a token is picked; None: the heads' own.

    Returns:
        Per text its keywords, in order; adjacent picked tokens are one.

    Raises:
        BadImage: A picture cannot be read.
        BadText: A piece is no text, or a text with its picture is longer than the model's context.
        EmptyPhrase: A text without words.
        HeadsMismatch: There are no heads, or they have no keyword selector.
    """
    heads = _heads(lmm)
    selector = heads.keyword_selector
    if selector is None:
        raise HeadsMismatch(
            "these heads have no keyword selector (released checkpoints have none); use heads that were trained with "
            "one, or leave flmm_keywords out of --tasks"
        )
    limit = heads.manifest.keyword_threshold if threshold is None else threshold
    if not asked:
        return []
    written = []
    for one in asked:
        _check(lmm, one)
        if not has_words(one.text):
            raise EmptyPhrase(f"a text without words ({one.text!r}) has no keywords; leave it out")
        written.append(text_offsets(lmm.backbone.tokenizer, one.text))
    pictures = [open_image(one.image) for one in asked]
    encoded = _encoded(lmm, asked, pictures, [ids for ids, _ in written])
    slots = [torch.arange(encoded.length - len(ids), encoded.length) for ids, _ in written]
    # Hidden states alone are wanted: no column of attention is kept.
    capture = read_sequence(lmm.backbone, encoded, slots, [tokens[0].slots[:0] for tokens in encoded.image_tokens])
    found = []
    for item, (one, (ids, offsets)) in enumerate(zip(asked, written, strict=True)):
        last = capture.hidden(item)[:, -1]
        picked = keywords(selector, last, [True] * len(ids), one.text, offsets, limit)
        found.append([Keyword(one.text[start:end], (start, end)) for _, (start, end) in picked])
    return found


def _written(lmm: GroundedLMM, one: GivenText) -> tuple[list[int], list[list[int]]]:
    """Token ids of a text, and the indices of the tokens of each grounded piece."""
    _check(lmm, one)
    ids, groups = pieces_tokens(lmm.backbone.tokenizer, one.pieces)
    chosen = []
    for index in one.grounded:
        if not 0 <= index < len(groups) or not groups[index] or not has_words(one.pieces[index]):
            what = repr(one.pieces[index]) if 0 <= index < len(groups) else f"of {len(groups)}"
            raise EmptyPhrase(f"piece {index} ({what}) has no words to ground; name a piece of the text that has some")
        chosen.append(groups[index])
    return ids, chosen


def _check(lmm: GroundedLMM, one: GivenText) -> None:
    """Refuse what is no text, or no place in it, before a model runs."""
    for index, piece in enumerate(one.pieces):
        check_text(piece, f"piece {index}")
    for place in one.grounded:
        if isinstance(place, bool) or not hasattr(place, "__index__"):
            raise BadText(f"{place!r} among the grounded pieces is no index; give whole numbers from 0 on")
    check_characters(lmm.backbone, one.text)


def _encoded(
    lmm: GroundedLMM, asked: Sequence[GivenText], pictures: Sequence[Image.Image], texts: list[list[int]]
) -> EncodedChat:
    chats: list[Messages] = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.question}]}] for one in asked
    ]
    template = _heads(lmm).manifest.template
    encoded = lmm.backbone.encode(chats, [[picture] for picture in pictures], template=template)
    return encoded.extended(texts, lmm.backbone.pad_id)


def _heads(lmm: GroundedLMM) -> GroundingHeads:
    if lmm.heads is None:
        raise HeadsMismatch(f"{lmm.backbone.name} was loaded to chat only; pass heads=... to from_pretrained")
    return lmm.heads
