"""Answer a question, then find in the picture what the answer says, as a whole.

This is how a frozen model does reasoning segmentation (paper, sections 4.3 and A1.4): it answers, and the attention of
the words that it wrote is grounded as one phrase. The answer's first words may be given ("It is"), so that a model that
would talk about the question names the thing instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flmm_plugin.backbones.base import Messages
from flmm_plugin.context import check_encoded
from flmm_plugin.errors import HeadsMismatch
from flmm_plugin.images import ImageSource, chat_image
from flmm_plugin.phrases import decoded_offsets, plain_tokens
from flmm_plugin.reading import Reading, ground_reading
from flmm_plugin.records import GroundedAnswer
from flmm_plugin.replay import read_answer
from flmm_plugin.words import trimmed

if TYPE_CHECKING:
    from flmm_plugin.grounded_lmm import GroundedLMM


def answer_and_ground(
    lmm: GroundedLMM,
    image: ImageSource,
    question: str | Messages,
    *,
    begin: str = "",
    max_new_tokens: int | None = None,
    refine: bool = True,
    **generate: Any,
) -> GroundedAnswer:
    """Answer about a picture, and ground all the words that were generated as one phrase.

    Args:
        lmm: With heads.
        image: What to look at.
        question: The user's words, or a whole chat in transformers' form with one place for the image.
        begin: What the answer must begin with; part of the returned text, not of what is grounded.
        max_new_tokens: Length limit of what follows ``begin``; None: what ``generate`` says of a length, else 64.
        refine: Use the mask refiner.
        **generate: Passed to the model's ``generate``.

    Returns:
        Text (with ``begin``), generated ids, and one grounding with its span in the text; none if the model ended its
        answer at once.

    Raises:
        BadText: Question and picture, or these and the answer, are longer than the model's context.
        HeadsMismatch: The model was loaded to chat only.
    """
    heads = lmm.heads
    if heads is None:
        raise HeadsMismatch(f"{lmm.backbone.name} was loaded to chat only; pass heads=... to from_pretrained")
    picture = chat_image(image)
    backbone, tokenizer = lmm.backbone, lmm.backbone.tokenizer
    chat: Messages = (
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        if isinstance(question, str)
        else question
    )
    encoded = backbone.encode([chat], [[picture]])
    forced = plain_tokens(tokenizer, begin) if begin else []
    if forced:
        encoded = encoded.extended([forced], backbone.pad_id)
    check_encoded(backbone, encoded)
    tokens = encoded.image_tokens[0][0]  # before the answer: a picture that cannot be grounded costs none
    generated = backbone.generate(encoded, max_new_tokens=max_new_tokens, **generate)
    ids = generated.answer_ids(0)
    # Decoded together, so that the space between the given and the generated words is the tokenizer's own.
    text, offsets = decoded_offsets(tokenizer, [*forced, *ids])
    special = set(tokenizer.all_special_ids)
    spoken = [
        index
        for index, token in enumerate(ids)
        if token not in special and offsets[len(forced) + index][0] < offsets[len(forced) + index][1]
    ]
    written = [offsets[len(forced) + index] for index in spoken]
    span = trimmed(text, (written[0][0], written[-1][1])) if written else (0, 0)
    if span[0] >= span[1]:
        return GroundedAnswer(text, tuple(ids), ())
    capture = read_answer(backbone, encoded, generated, [spoken], [tokens.slots])
    phrase = (text[span[0] : span[1]], span)
    reading = Reading(capture.attention(0), capture.hidden(0), (len(spoken),), (phrase,), tokens)
    found = ground_reading(reading, picture, backbone, heads, merge=lmm.merge, refine=refine)
    return GroundedAnswer(text, tuple(ids), tuple(found))
