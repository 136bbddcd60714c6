"""`GroundedLMM`: a frozen model that chats as ever and says where the things it speaks of are.

Chat is the model's own ``generate``. Grounding is a second look: the attention of the words in question to the image
tokens, read beside the stock attention, goes through the trained heads. `grounded_chat` generates exactly as `chat`
does (one method serves both) and looks afterwards.

Shapes: n phrases, t tokens, m layers, c heads per layer, k image tokens, h x w grid, H x W original picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from flmm_plugin.attention import AttentionCapture
from flmm_plugin.backbones import ARGUMENTS, load_backbone, refuse_unknown
from flmm_plugin.backbones.base import Backbone, EncodedChat, Generated, Messages
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.context import check_characters, check_encoded, check_tokens
from flmm_plugin.errors import EmptyPhrase, FrozenWeightsChanged, HeadsMismatch, UnknownArgument
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads import GroundingHeads
from flmm_plugin.heads_choice import check_heads, choose_heads
from flmm_plugin.images import ImageSource, chat_image, open_image
from flmm_plugin.phrases import check_merge, decoded_offsets, merged_rows, span_tokens, text_offsets, written_phrases
from flmm_plugin.reading import Reading, ground_reading, keywords
from flmm_plugin.records import ChatAnswer, GroundedAnswer, Grounding
from flmm_plugin.replay import read_answer, read_continuations, read_sequence
from flmm_plugin.seal import FrozenSeal, fingerprint
from flmm_plugin.visual_cot import CotQuestion, VisualCotAnswer, VisualCotOptions, visual_cot
from flmm_plugin.words import Span, check_text, checked_phrases, checked_spans, trimmed

# The paper's, for looking at attention without heads; heads carry their own in their manifest.
PROMPT = "Please give me a description of the image."
SEPARATOR = "."

# Rows of a whole answer are read in the same pass as its hidden states up to this size; larger answers are read twice.
_ONE_PASS_BYTES = 512 << 20


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """How the tokens of one phrase look at the picture.

    Attributes:
        maps: ``float32[m, c, h, w]``, grid frame: share of attention, not normalised over the picture. Families with
            two views have 2 c per layer: the coarse view's heads, then the fine one's.
        grid: How the cells lie on the original picture.
    """

    maps: npt.NDArray[np.float32]
    grid: ImageGrid


class GroundedLMM:
    """A frozen backbone, and heads that read it.

    Example::

        lmm = GroundedLMM.from_pretrained("flmm_tiny")
        lmm.chat("scene.png", "What is in the picture?").text
        for grounding in lmm.ground("scene.png", ["the small red circle"]):
            grounding.mask          # bool[H, W] on the original picture

    Args:
        backbone: The frozen model.
        heads: Trained for it; None: chat and attention maps only.
        merge: How a phrase's tokens become one map; None: as the heads were trained.
        preprocessing: What pictures go through before grounding, set on the backbone; None: as the heads were trained.

    Raises:
        HeadsMismatch: Heads of another backbone's shape.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: GroundingHeads | None = None,
        *,
        merge: str | None = None,
        preprocessing: str | None = None,
    ) -> None:
        if heads is not None:
            heads.manifest.check_fits(backbone.facts)
            preprocessing = preprocessing or heads.manifest.preprocessing or None
        backbone.preprocess(preprocessing)
        self.backbone = backbone
        self.heads = heads
        self.merge = merge or (heads.manifest.merge if heads is not None else "mean")
        check_merge(self.merge)
        self._fingerprint = fingerprint(backbone.model)

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | PathLike[str] = EMBEDDED,
        heads: str | PathLike[str] | GroundingHeads | None = "auto",
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        device_map: str | dict[str, Any] | None = None,
        attn_implementation: str | None = None,
        system_prompt: str | None = None,
        preprocessing: str | None = None,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        trust_remote_code: bool = False,
        sam: str | None = None,
        sam_checkpoint: str | PathLike[str] | None = None,
        merge: str | None = None,
        **unknown: Any,
    ) -> GroundedLMM:
        """Load a model and heads for it.

        Args:
            backbone: As in `flmm_plugin.backbones.load_backbone`, and so are the arguments up to
                ``trust_remote_code``.
            heads: A heads file, heads in memory, ``"auto"`` for those that ship with the embedded model, a method
                that needs no training (``attention-argmax``, ``attend-and-segment``, ``localization-heads``), or None
                to chat only.
            revision: Of the backbone on the hub.
            dtype: Of the backbone. Heads compute in float32.
            device: Of backbone and heads.
            device_map: Splits the backbone; the heads go where its last layer is.
            attn_implementation: The backbone's attention kernel.
            system_prompt: A system turn for every chat.
            preprocessing: What pictures go through before grounding, ``stock`` or ``paper``; default: as the heads
                were trained.
            load_in_4bit: Quantise the backbone's weights to 4 bits (bitsandbytes).
            load_in_8bit: Quantise them to 8 bits.
            trust_remote_code: Run code from the model's repository, for families that cannot do without.
            sam: ``none``: masks of the mask decoder alone, SAM is not loaded. Any other name must be that of the SAM
                that the heads were trained with.
            sam_checkpoint: Meta's SAM file, for heads of an official SAM size and for methods without training.
            merge: ``mean`` or ``max``, instead of what the heads were trained with.
            **unknown: Refused, with the nearest known argument.
        """
        refuse_unknown("GroundedLMM.from_pretrained", unknown, (*ARGUMENTS, "heads", "sam", "sam_checkpoint", "merge"))
        check_heads(fspath(backbone), heads, sam=sam, sam_checkpoint=sam_checkpoint)  # what is wrong costs no loading
        model = load_backbone(
            backbone,
            revision=revision,
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
            system_prompt=system_prompt,
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            trust_remote_code=trust_remote_code,
        )
        chosen = choose_heads(model, heads, sam=sam, sam_checkpoint=sam_checkpoint)
        return cls(model, chosen, merge=merge, preprocessing=preprocessing)

    # Chat: the model's own.

    def chat(
        self, image: ImageSource | None, question: str | Messages, *, max_new_tokens: int | None = None, **generate: Any
    ) -> ChatAnswer:
        """Ask about a picture (or, with None, about none).

        Args:
            image: What to look at.
            question: The user's words, or a whole chat in transformers' form with one place for the image.
            max_new_tokens: Length limit; None: what ``generate`` says of a length, else 64.
            **generate: Passed to the model's ``generate``, ``generation_config`` among them.

        Raises:
            EmptyPhrase: A question without words.
            BadImage: The picture cannot be read, or the model's own processor refuses it.
            UnknownArgument: Not an option of ``generate``, or one that one answer in words has no place for.
        """
        pictures = [] if image is None else [chat_image(image)]
        chat = _asked(question, len(pictures))
        return self.chat_batch([chat], [pictures], max_new_tokens=max_new_tokens, **generate)[0]

    def chat_batch(
        self, messages: list[Messages], images: Sequence[Sequence[ImageSource]], **generate: Any
    ) -> list[ChatAnswer]:
        """Several chats at once, padded on the left; images in order of appearance in each chat."""
        encoded = self.backbone.encode(messages, [[chat_image(one) for one in pictures] for pictures in images])
        generated = self.backbone.generate(encoded, **generate)
        return [self._answer(generated, item) for item in range(len(messages))]

    def grounded_chat(
        self,
        image: ImageSource,
        question: str | Messages,
        *,
        max_new_tokens: int | None = None,
        threshold: float | None = None,
        refine: bool = True,
        **generate: Any,
    ) -> GroundedAnswer:
        """Chat, then ground what the answer names. Text and ids are those of `chat` with the same arguments.

        Args:
            image: What to look at.
            question: As for `chat`.
            max_new_tokens: Length limit, as for `chat`.
            threshold: Score from which the keyword selector takes a token; None: the heads' own.
            refine: Use the mask refiner.
            **generate: Passed to the model's ``generate``.

        Raises:
            BadText: Question and picture, or these and the answer, are longer than the model's context.
            HeadsMismatch: There are no heads, or they have no keyword selector.
        """
        heads = self._need_heads()
        if heads.keyword_selector is None:
            raise HeadsMismatch("these heads have no keyword selector; chat, then pass the spans to ground_text")
        picture = chat_image(image)
        encoded = self._encoded(_asked(question, 1), picture)
        tokens = encoded.image_tokens[0][0]  # before the answer: a picture that cannot be grounded costs none
        generated = self.backbone.generate(encoded, max_new_tokens=max_new_tokens, **generate)
        answer = self._answer(generated, 0)
        text, offsets = decoded_offsets(self.backbone.tokenizer, answer.token_ids)
        every = list(range(len(answer.token_ids)))
        facts = self.backbone.facts
        fits = len(every) * facts.layers * facts.heads * len(tokens.slots) * 4 <= _ONE_PASS_BYTES
        columns = tokens.slots if fits else tokens.slots[:0]
        capture = read_answer(self.backbone, encoded, generated, [every], [columns])
        limit = heads.manifest.keyword_threshold if threshold is None else threshold
        special = set(self.backbone.tokenizer.all_special_ids)
        names = [token not in special for token in answer.token_ids]
        groups = keywords(heads.keyword_selector, capture.hidden(0)[:, -1], names, text, offsets, limit)
        if not groups:
            return GroundedAnswer(answer.text, answer.token_ids, ())
        picked = [index for group, _ in groups for index in group]
        if fits:
            rows, hidden = capture.attention(0)[picked], capture.hidden(0)[picked]
        else:
            capture = read_answer(self.backbone, encoded, generated, [picked], [tokens.slots])
            rows, hidden = capture.attention(0), capture.hidden(0)
        phrases = tuple((text[span[0] : span[1]], span) for _, span in groups)
        reading = Reading(rows, hidden, tuple(len(group) for group, _ in groups), phrases, tokens)
        return GroundedAnswer(answer.text, answer.token_ids, tuple(self._masks(reading, picture, refine)))

    # Grounding of given words.

    def ground(
        self,
        image: ImageSource,
        phrases: Iterable[str],
        *,
        prompt: str | None = None,
        joint: bool = True,
        refine: bool = True,
    ) -> list[Grounding]:
        """Find each phrase in a picture.

        Args:
            image: Where to look; encoded once however many phrases there are.
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
        self._need_heads()
        phrases = checked_phrases(phrases)
        written = [self._written([phrase]) for phrase in phrases]
        picture = open_image(image)
        encoded = self._encoded(self._prompt(prompt), picture, self._template)
        tokens = encoded.image_tokens[0][0]
        texts, indices = [ids for ids, _ in written], [groups[0] for _, groups in written]
        found: list[Grounding] = []
        read = read_continuations(self.backbone, encoded, texts, indices, tokens.slots)
        for phrase, (rows, hidden) in zip(phrases, read, strict=True):
            reading = Reading(rows, hidden, (len(rows),), ((phrase, None),), tokens)
            found += self._masks(reading, picture, refine)
        return found

    def ground_many(
        self,
        images: Sequence[ImageSource],
        phrases: Sequence[Iterable[str]],
        *,
        prompt: str | None = None,
        refine: bool = True,
        batch_size: int = 8,
    ) -> list[list[Grounding]]:
        """`ground` for several pictures, ``batch_size`` at a time in one forward pass. No phrases: no groundings."""
        self._need_heads()
        if batch_size < 1:
            raise UnknownArgument(f"batch_size is a number of pictures from 1 on, not {batch_size!r}")
        found: list[list[Grounding]] = [[] for _ in images]
        if len(images) != len(phrases):
            raise EmptyPhrase(f"{len(images)} images but {len(phrases)} lists of phrases; give one list for each image")
        # All of them before the first picture is looked at: a bad phrase costs no run.
        named = [checked_phrases(some) for some in phrases]
        written = {index: self._written(some) for index, some in enumerate(named) if some}
        asked = list(written)
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            pictures = [open_image(images[index]) for index in batch]
            capture, encoded = self._read_phrases(pictures, [written[index] for index in batch], prompt)
            for item, index in enumerate(batch):
                reading = Reading(
                    capture.attention(item),
                    capture.hidden(item),
                    tuple(len(group) for group in written[index][1]),
                    tuple((phrase, None) for phrase in named[index]),
                    encoded.image_tokens[item][0],
                )
                found[index] = self._masks(reading, pictures[item], refine)
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
    ) -> list[Grounding]:
        """Ground parts of a text that is given, e.g. an answer from elsewhere or the question itself.

        Args:
            image: What the text is about.
            messages: The chat, ending with the user's turn; a string is the user's words.
            text: ``where="answer"``: what follows the chat. ``where="question"``: words of the chat after the image.
            spans: Characters ``[start, end)`` of ``text``, one pair per phrase.
            where: Which of the two ``text`` is.
            refine: Use the mask refiner.

        Raises:
            BadText: ``text`` or a span is of another type, or text and picture are longer than the model's context.
            EmptyPhrase: A span without words, or a question that the chat does not contain.
            UnknownArgument: ``where`` is neither of the two.
        """
        self._need_heads()
        if where not in ("answer", "question"):
            raise UnknownArgument(f"where is 'answer' or 'question', not {where!r}")
        check_text(text)
        spans = checked_spans(spans, text)
        if not spans:
            return []
        ids: list[int] = []
        groups: list[list[int]] = []
        if where == "answer":
            check_characters(self.backbone, text)
            ids, offsets = text_offsets(self.backbone.tokenizer, text)
            check_tokens(self.backbone, len(ids))
            groups = [span_tokens(text, offsets, span) for span in spans]
        picture = open_image(image)
        template = self._template if isinstance(messages, str) and where == "answer" else ""
        encoded = self._encoded(messages, picture, template)
        if where == "answer":
            encoded = encoded.extended([ids], self.backbone.pad_id)
            first = encoded.length - len(ids)
        else:
            groups, first = self._question_tokens(encoded, text, spans)
        tokens = encoded.image_tokens[0][0]
        slots = torch.tensor([index for group in groups for index in group]) + first
        capture = read_sequence(self.backbone, encoded, [slots], [tokens.slots])
        words = [trimmed(text, span) for span in spans]
        phrases = tuple((text[span[0] : span[1]], span) for span in words)
        sizes = tuple(len(group) for group in groups)
        return self._masks(Reading(capture.attention(0), capture.hidden(0), sizes, phrases, tokens), picture, refine)

    def visual_cot(
        self,
        image: ImageSource,
        question: str,
        *,
        instruction: str = "",
        options: VisualCotOptions | None = None,
        **generate: Any,
    ) -> VisualCotAnswer:
        """Find what a question is about, zoom in, answer: `flmm_plugin.visual_cot` says how.

        Args:
            image: What to look at.
            question: What is asked.
            instruction: Written behind the question when it is to be answered.
            options: Variant and details; None: the paper's first variant.
            **generate: Passed to the model's ``generate`` for the answer (default: 32 new tokens).
        """
        asked = CotQuestion(open_image(image), question, instruction)
        return self.visual_cot_batch([asked], options, **generate)[0]

    def visual_cot_batch(
        self, asked: Sequence[CotQuestion], options: VisualCotOptions | None = None, **generate: Any
    ) -> list[VisualCotAnswer]:
        """`visual_cot` for several questions, padded on the left, as one batch."""
        return visual_cot(self, asked, options or VisualCotOptions(), **generate)

    def attention_maps(self, image: ImageSource, phrase: str, *, prompt: str | None = None) -> AttentionMaps:
        """The maps that the heads would read for one phrase; needs no heads."""
        written = self._written([phrase])
        capture, encoded = self._read_phrases([open_image(image)], [written], prompt)
        rows, tokens = capture.attention(0), encoded.image_tokens[0][0]
        merged = merged_rows(rows, [len(rows)], self.merge)
        # Layer by layer: families with two views differ in whether heads read them view by view or layer by layer.
        layers = [self.backbone.attention_maps(merged[:, one : one + 1], tokens)[0] for one in range(merged.shape[1])]
        return AttentionMaps(torch.stack(layers).float().cpu().numpy(), tokens.grid)

    # Proof.

    @cached_property
    def seal(self) -> FrozenSeal:
        """Hashes of every weight of the backbone, taken when first asked for; `FrozenSeal.verify` compares.

        Raises:
            FrozenWeightsChanged: The weights changed between loading and this first call.
        """
        if fingerprint(self.backbone.model) != self._fingerprint:
            raise FrozenWeightsChanged(
                "the backbone's weights changed between loading and sealing; load it afresh and find what trains it"
            )
        return FrozenSeal(self.backbone.model)

    # Inside.

    def _answer(self, generated: Generated, item: int) -> ChatAnswer:
        ids = generated.answer_ids(item)
        return ChatAnswer(self.backbone.tokenizer.decode(ids, skip_special_tokens=True), tuple(ids))

    def _need_heads(self) -> GroundingHeads:
        if self.heads is None:
            raise HeadsMismatch(f"{self.backbone.name} was loaded to chat only; pass heads=... to from_pretrained")
        return self.heads

    def _masks(self, reading: Reading, picture: Image.Image, refine: bool) -> list[Grounding]:
        return ground_reading(reading, picture, self.backbone, self._need_heads(), merge=self.merge, refine=refine)

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

    def _encoded(self, question: str | Messages, picture: Image.Image, template: str = "") -> EncodedChat:
        """One chat about one picture, refused if it is longer than the model's context."""
        if isinstance(question, str):
            check_characters(self.backbone, question)
        encoded = self.backbone.encode([_chat(question, 1)], [[picture]], template=template)
        check_encoded(self.backbone, encoded)
        return encoded

    def _written(self, phrases: list[str]) -> tuple[list[int], list[list[int]]]:
        """Phrases as one answer: its token ids, and per phrase the indices of its tokens."""
        check_characters(self.backbone, "".join(phrases))
        ids, groups = written_phrases(self.backbone.tokenizer, phrases, self._separator)
        check_tokens(self.backbone, len(ids))
        return ids, groups

    def _read_phrases(
        self, pictures: list[Image.Image], written: Sequence[tuple[list[int], list[list[int]]]], prompt: str | None
    ) -> tuple[AttentionCapture, EncodedChat]:
        """One teacher-forced pass over a batch; rows of all phrase tokens, separators left out, phrase after phrase."""
        chats = [_chat(self._prompt(prompt), 1) for _ in pictures]
        encoded = self.backbone.encode(chats, [[picture] for picture in pictures], template=self._template)
        encoded = encoded.extended([ids for ids, _ in written], self.backbone.pad_id)
        slots = [
            torch.tensor([index for group in groups for index in group]) + encoded.length - len(ids)
            for ids, groups in written
        ]
        columns = [tokens[0].slots for tokens in encoded.image_tokens]
        return read_sequence(self.backbone, encoded, slots, columns), encoded

    def _question_tokens(self, encoded: EncodedChat, text: str, spans: Sequence[Span]) -> tuple[list[list[int]], int]:
        """Tokens of the spans among those that follow the image, and the slot where those begin."""
        first = int(encoded.image_tokens[0][-1].slots.max()) + 1
        ids = encoded.inputs["input_ids"][0, first:].tolist()
        whole, offsets = decoded_offsets(self.backbone.tokenizer, ids)
        place = whole.rfind(text)
        if place < 0 or not text:
            raise EmptyPhrase(
                f"the chat does not contain {text!r} after the image; words before the image cannot look at it"
            )
        return [span_tokens(whole, offsets, (place + start, place + end)) for start, end in spans], first


def _asked(question: str | Messages, images: int) -> Messages:
    """Write a question as `_chat` does; refuse one without words."""
    if not question or (isinstance(question, str) and not question.strip()):
        raise EmptyPhrase("the question is empty; ask something about the picture")
    return _chat(question, images)


def _chat(question: str | Messages, images: int) -> Messages:
    """A question as a chat of one turn, images first; a chat as it is."""
    if not isinstance(question, str):
        return question
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]
