"""`GroundedLMM`: a frozen model that chats as ever and says where the things it speaks of are.

Chat is the model's own ``generate``. Grounding is a second look: the attention of the words in question to the image
tokens, read beside the stock attention, goes through the trained heads. `GroundedLMM.grounded_chat` generates exactly
as `GroundedLMM.chat` does and looks afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

from flmm_plugin.backbones import load_backbone
from flmm_plugin.backbones.base import Messages
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.capture import capture_answers, merged_rows
from flmm_plugin.frozen_lmm import check_question
from flmm_plugin.grounding import PhraseGrounder, chosen_phrases
from flmm_plugin.heads import GroundingHeads
from flmm_plugin.heads_choice import check_heads, choose_heads, needs_for
from flmm_plugin.hub_files import weights_need
from flmm_plugin.images import ImageSource, chat_image, open_image
from flmm_plugin.needs import provide
from flmm_plugin.options import LoadOptions
from flmm_plugin.passages import Passage, decoded_offsets
from flmm_plugin.records import GroundedAnswer
from flmm_plugin.visual_cot import CotQuestion, VisualCotAnswer, VisualCotOptions, answer_with_cot

# Rows of a whole answer are read in the same pass as its hidden states up to this size; larger answers are read twice.
_ONE_PASS_BYTES = 512 << 20


class GroundedLMM(PhraseGrounder):
    """A frozen backbone that chats, and heads that say where the things it speaks of are.

    Example::

        lmm = GroundedLMM.from_pretrained("flmm_tiny")
        lmm.chat("scene.png", "What is in the picture?").text
        for grounding in lmm.ground("scene.png", ["the small red circle"]):
            grounding.mask          # bool[H, W] on the original picture

    Arguments are those of `flmm_plugin.grounding.PhraseGrounder`.
    """

    @classmethod
    def from_pretrained(
        cls,
        backbone: str | PathLike[str] = EMBEDDED,
        heads: str | PathLike[str] | GroundingHeads | None = "auto",
        *,
        sam: str | None = None,
        sam_checkpoint: str | PathLike[str] | None = None,
        merge: str | None = None,
        fetch: bool = True,
        options: LoadOptions | None = None,
        **given: Any,
    ) -> GroundedLMM:
        """Load a model and heads for it.

        Args:
            backbone: A hub name, a folder, or ``flmm_tiny`` for the model that the package carries.
            heads: ``"auto"``: those that ship with the model, else those in the store for it, else the paper's own,
                which are fetched once; where there are none, the model chats. All other values are those of
                `flmm_plugin.heads_choice.choose_heads`: a file, a hub repository, a method that needs no training,
                heads in memory, or None to chat only.
            sam: ``none``: masks of the mask decoder alone, SAM is not loaded. Any other name must be that of the SAM
                that the heads were trained with.
            sam_checkpoint: A SAM file or size, for heads of an official SAM size and for methods without training.
                Where it is left out, Meta's own file is fetched once.
            merge: ``mean`` or ``max``, instead of what the heads were trained with.
            fetch: Whether anything may be fetched; if not, all that is missing is listed in one error.
            options: Options of loading the backbone, instead of the next.
            **given: Fields of `flmm_plugin.options.LoadOptions` by name: ``dtype``, ``device``, ``preprocessing``, ...

        Raises:
            UnknownArgument: An argument that does not exist; offers the nearest.
            NotReady: Something is not on this machine, and nothing may be fetched.
        """
        if options is None:
            others = ("heads", "sam", "sam_checkpoint", "merge", "fetch")
            options = LoadOptions.of("GroundedLMM.from_pretrained", given, others)
        name = fspath(backbone)
        of_sam: dict[str, Any] = {"sam": sam, "sam_checkpoint": sam_checkpoint}
        if not fetch:
            needs = needs_for(name, heads, **of_sam, revision=options.revision, required=False)
            provide([weights_need(name, options.revision), *needs], fetch=False)
        # What is wrong costs no loading.
        chosen = check_heads(name, heads, **of_sam, revision=options.revision, fetch=fetch)
        model = load_backbone(backbone, options)
        lmm = cls(model, choose_heads(model, chosen, **of_sam), merge=merge, preprocessing=options.preprocessing)
        lmm.searched = heads == "auto"
        return lmm

    def load_heads(
        self,
        heads: str | PathLike[str] | GroundingHeads | None = "auto",
        *,
        sam: str | None = None,
        sam_checkpoint: str | PathLike[str] | None = None,
        revision: str | None = None,
        fetch: bool = True,
    ) -> None:
        """Load other heads for this model and ground with them from now on.

        Args:
            heads: File, hub repository, method, heads in memory, None, or ``"auto"``, as for `from_pretrained`.
            sam: ``none``: masks of the mask decoder alone; else the name of the SAM that the heads need.
            sam_checkpoint: SAM file or size; None: Meta's own of the size that is needed, fetched once.
            revision: Version of the model that ``auto`` must find heads for; None: any.
            fetch: Whether anything may be fetched.
        """
        chosen = choose_heads(
            self.backbone, heads, sam=sam, sam_checkpoint=sam_checkpoint, revision=revision, fetch=fetch
        )
        self.use(chosen)
        self.searched = heads == "auto"

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
            image: The picture to look at.
            question: As for `chat`: the user's words, or a whole chat.
            max_new_tokens: Length limit, as for `chat`.
            threshold: Score from which the keyword selector takes a token; None: the heads' own.
            refine: Use the mask refiner, if there is one.
            **generate: Passed to the model's ``generate``.

        Raises:
            BadText: Question and picture, or these and the answer, are longer than the model's context.
            HeadsMismatch: There are no heads, or they have no keyword selector.
        """
        selector, limit = self.need_selector(threshold)
        picture = chat_image(image)
        check_question(question)
        encoded, generated, _ = self.begin_answers([question], [picture], max_new_tokens=max_new_tokens, **generate)
        answer = self._answer(generated, 0)
        ids = list(answer.token_ids)
        text, offsets = decoded_offsets(self.backbone.tokenizer, ids)
        facts = self.backbone.facts
        fits = len(ids) * sum(facts.maps_of_layers) * len(encoded.image_tokens[0][0].slots) * 4 <= _ONE_PASS_BYTES
        # Each token is a phrase of its own: what becomes one phrase is known when the states are.
        every = Passage(ids, [[index] for index in range(len(ids))], [(text, None)] * len(ids))
        (captured,) = capture_answers(self.backbone, encoded, generated, [every], self.merge, attention=fits)
        special = self.backbone.tokenizer.all_special_ids
        named = chosen_phrases(selector, captured.hidden[:, -1], ids, text, offsets, limit, special)
        if not fits:
            (found,) = self.ground_generated(encoded, generated, [named], [picture], refine=refine)
        else:
            rows = captured.rows[named.tokens]
            if named.groups:
                rows = merged_rows(rows, named.sizes, self.merge)
            hidden = captured.hidden[named.tokens]
            found = self.masks(replace(captured, passage=named, rows=rows, hidden=hidden), picture, refine)
        return GroundedAnswer(answer.text, answer.token_ids, tuple(found))

    def ground_answer(
        self,
        image: ImageSource,
        question: str | Messages,
        *,
        begin: str = "",
        max_new_tokens: int | None = None,
        refine: bool = True,
        **generate: Any,
    ) -> GroundedAnswer:
        """Answer about a picture, and ground all the words that were generated as one phrase.

        This is how a frozen model does reasoning segmentation (paper, sections 4.3 and A1.4). The answer's first words
        may be given ("It is"), so that a model that would talk about the question names the thing instead.

        Args:
            image: The picture to look at.
            question: The user's words, or a whole chat in transformers' form with one place for the image.
            begin: The words that the answer must begin with; part of the returned text, not of what is grounded.
            max_new_tokens: Length limit of what follows ``begin``; None: the limit among ``generate``'s own options,
                else 64.
            refine: Use the mask refiner, if there is one.
            **generate: Passed to the model's ``generate``.

        Returns:
            The text (given words included), generated ids, and one grounding with its span in the text; none if the
            model ended its answer at once.

        Raises:
            BadText: Question and picture, or these and the answer, are longer than the model's context.
            HeadsMismatch: The model was loaded to chat only.
        """
        self.need_heads()
        picture = chat_image(image)
        encoded, generated, given = self.begin_answers(
            [question], [picture], begin, max_new_tokens=max_new_tokens, **generate
        )
        ids = generated.answer_ids(0)
        # Decoded together, so that the space between the given and the generated words is the tokenizer's own.
        text, offsets = decoded_offsets(self.backbone.tokenizer, [*given, *ids])
        offsets = offsets[len(given) :]
        special = set(self.backbone.tokenizer.all_special_ids)
        spoken = [index for index, (start, end) in enumerate(offsets) if ids[index] not in special and start < end]
        passage = Passage.of_tokens(ids, text, offsets, [spoken])
        (found,) = self.ground_generated(encoded, generated, [passage], [picture], refine=refine)
        return GroundedAnswer(text, tuple(ids), tuple(found))

    def visual_cot(
        self,
        image: ImageSource,
        question: str,
        *,
        instruction: str = "",
        options: VisualCotOptions | None = None,
        **generate: Any,
    ) -> VisualCotAnswer:
        """Find what a question is about, zoom in, answer; `flmm_plugin.visual_cot` describes the method.

        Args:
            image: The picture to look at.
            question: The user's words about it.
            instruction: Written behind the question when it is to be answered.
            options: Variant and details; None: the paper's first variant.
            **generate: Passed to the model's ``generate`` for the answer (default: 32 new tokens).
        """
        question_ = CotQuestion(open_image(image), question, instruction)
        return self.visual_cot_batch([question_], options, **generate)[0]

    def visual_cot_batch(
        self, asked: Sequence[CotQuestion], options: VisualCotOptions | None = None, **generate: Any
    ) -> list[VisualCotAnswer]:
        """Answer several questions as `visual_cot` does, padded on the left, as one batch."""
        return answer_with_cot(self, asked, options or VisualCotOptions(), **generate)
