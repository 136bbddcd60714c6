"""`FrozenLMM`: a frozen model that chats by its own ``generate``, and the proof that its weights stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from PIL import Image

from flmm_plugin.backbones.base import Backbone, EncodedChat, Generated, Messages
from flmm_plugin.backbones.inputs import one_turn
from flmm_plugin.context_length import check_characters, check_encoded
from flmm_plugin.errors import EmptyPhrase, FrozenWeightsChanged
from flmm_plugin.images import ImageSource, chat_image
from flmm_plugin.passages import plain_tokens
from flmm_plugin.records import ChatAnswer
from flmm_plugin.seal import FrozenSeal, fingerprint


class FrozenLMM:
    """A frozen backbone that chats as ever.

    Args:
        backbone: The frozen model with its processor.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self._fingerprint = fingerprint(backbone.model)

    def chat(
        self, image: ImageSource | None, question: str | Messages, *, max_new_tokens: int | None = None, **generate: Any
    ) -> ChatAnswer:
        """Ask about a picture (or, with None, about none).

        Args:
            image: The picture to look at.
            question: The user's words, or a whole chat in transformers' form with one place for the image.
            max_new_tokens: Length limit; None: the limit among ``generate``'s own options, else 64.
            **generate: Passed to the model's ``generate``, ``generation_config`` among them.

        Raises:
            EmptyPhrase: A question without words.
            BadImage: The picture cannot be read, or the model's own processor refuses it.
            UnknownArgument: Not an option of ``generate``, or one that one answer in words has no place for.
        """
        pictures = [] if image is None else [chat_image(image)]
        check_question(question)
        chat = one_turn(question, len(pictures)) if isinstance(question, str) else question
        return self.chat_batch([chat], [pictures], max_new_tokens=max_new_tokens, **generate)[0]

    def chat_batch(
        self, messages: list[Messages], images: Sequence[Sequence[ImageSource]], **generate: Any
    ) -> list[ChatAnswer]:
        """Continue several chats at once, padded on the left; images in order of appearance in each chat."""
        encoded = self.backbone.encode(messages, [[chat_image(one) for one in pictures] for pictures in images])
        generated = self.backbone.generate(encoded, **generate)
        return [self._answer(generated, item) for item in range(len(messages))]

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

    def encode(
        self, chats: Sequence[str | Messages], pictures: Sequence[Image.Image], template: str = ""
    ) -> EncodedChat:
        """Encode chats about one picture each.

        Args:
            chats: The user's words, or a whole chat with one place for the image.
            pictures: One for each chat, RGB.
            template: Text around ``{image}`` and ``{prompt}``, instead of the model's own chat template.

        Raises:
            BadText: A chat with its picture is longer than the model's context.
        """
        for chat in chats:
            if isinstance(chat, str):
                check_characters(self.backbone, chat)
        written = [one_turn(chat) if isinstance(chat, str) else chat for chat in chats]
        encoded = self.backbone.encode(written, [[picture] for picture in pictures], template=template)
        check_encoded(self.backbone, encoded)
        return encoded

    def begin_answers(
        self, chats: Sequence[str | Messages], pictures: Sequence[Image.Image], begin: str = "", **generate: Any
    ) -> tuple[EncodedChat, Generated, list[int]]:
        """Generate answers about one picture each whose first words are given, and keep what grounding reads back.

        Args:
            chats: The user's words, or a whole chat with one place for the image.
            pictures: One for each chat, RGB.
            begin: The words that every answer begins with; "" for none.
            **generate: Passed to the model's ``generate``.

        Returns:
            The chats with the given words behind them, the words generated after these, and the given words' ids.

        Raises:
            BackboneUnsupported: A picture that cannot be grounded; refused before its answer is generated.
            BadText: A chat with its picture is longer than the model's context.
        """
        encoded = self.encode(chats, pictures)
        given = plain_tokens(self.backbone.tokenizer, begin) if begin else []
        if given:
            encoded = encoded.extended([given] * len(chats), self.backbone.pad_id)
            check_encoded(self.backbone, encoded)
        _ = encoded.image_tokens
        return encoded, self.backbone.generate(encoded, **generate), given

    def _answer(self, generated: Generated, item: int) -> ChatAnswer:
        ids = generated.answer_ids(item)
        return ChatAnswer(self.backbone.tokenizer.decode(ids, skip_special_tokens=True), tuple(ids))


def check_question(question: str | Messages) -> None:
    """Raise `EmptyPhrase` for a question without words, or a chat without turns."""
    if not question or (isinstance(question, str) and not question.strip()):
        raise EmptyPhrase("the question is empty; ask something about the picture")
