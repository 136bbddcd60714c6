"""Read samples to learn from: images with texts whose phrases have masks, in the official layouts of their data sets.

A narrative of PNG is a sample as it is. The expressions of one picture of RefCOCO(+/g) are one sample too: a list, each
expression closed by the recipe's separator (paper, section A1.3). Of an object's sentences one is drawn, once per run,
by the seed.

Shapes: n phrases, H x W original picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_plugin import bundled
from flmm_plugin.datasets import own, png, refer
from flmm_plugin.datasets.own import OwnDataset
from flmm_plugin.datasets.phrases import PhraseItem
from flmm_plugin.datasets.png import Narrative, PngDataset
from flmm_plugin.datasets.problems import Problem
from flmm_plugin.datasets.reader import SplitReader
from flmm_plugin.datasets.refer import ReferDataset, ReferItem
from flmm_plugin.images import open_image
from flmm_plugin.passages import Passage, piece_spans, plain_tokens
from flmm_plugin.records import BoolMask
from flmm_plugin.text_checks import Span, has_words
from flmm_plugin.training.recipe import DATASETS, DataPart, TrainRecipe


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One image, a text about it, and masks of some pieces of the text."""

    key: str  # names it within its data, the same in every run: ``refcoco/train/581857``
    image_path: Path
    image_loader: Callable[[], Image.Image]  # raises `BadImage`
    prompt: str  # the user's words
    pieces: tuple[str, ...]  # the text, cut where its phrases begin and end; expressions and separators in turn
    grounded: tuple[int, ...]  # indices of the pieces that have a mask
    mask_loader: Callable[[], list[BoolMask]]  # one mask per entry of ``grounded``
    keywords: bool  # the keyword selector learns from it (from the text tokenised as a whole, see `spans`)
    separator: str | None = None  # of a list of expressions; None for a text that is fed as it is
    in_question: bool = False  # the text is the prompt: the phrases stand in the user's question

    def masks(self) -> list[BoolMask]:
        """Load the target of each phrase, ``bool[H, W]`` in the image frame.

        Raises:
            BadAnnotation: The annotation is damaged.
        """
        return self.mask_loader()

    @property
    def text(self) -> str:
        """All pieces, joined."""
        return "".join(self.pieces)

    @property
    def phrases(self) -> tuple[str, ...]:
        """The pieces that have a mask."""
        return tuple(self.pieces[index] for index in self.grounded)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Characters ``[start, end)`` of each phrase in `text`, without white space at the ends."""
        return tuple(piece_spans(self.pieces, self.grounded))

    @property
    def content(self) -> str:
        """All that decides what the frozen model is shown, except the picture's pixels: one line of JSON."""
        facts = (self.prompt, self.pieces, self.grounded, self.separator, self.keywords)
        # Only where it is so: records of other samples keep the address that they always had.
        question = ("question",) if self.in_question else ()
        return json.dumps((*facts, *question), ensure_ascii=False)

    def passage(self, tokenizer: Any) -> Passage:
        """Tokenise the text as it is fed, with the tokens of each phrase.

        Lists are written as `GroundedLMM.ground` writes them, texts as `ground_pieces` does: what heads learn from is
        what they are asked with.

        Raises:
            EmptyPhrase: A phrase without words, or one that tokenises to nothing.
        """
        if self.separator is not None:
            return Passage.of_phrases(tokenizer, self.phrases, self.separator)
        return Passage.of_pieces(tokenizer, self.pieces, self.grounded)


def without_empty(sample: TrainingSample, tokenizer: Any) -> tuple[TrainingSample | None, tuple[str, ...]]:
    """Remove the phrases that have no words or no token from a sample; also return them.

    An empty expression goes from its list; in a narrative the text stays and the phrase is no longer asked for. None:
    nothing is left.
    """
    kept = [
        place
        for place, phrase in enumerate(sample.phrases)
        if has_words(phrase) and plain_tokens(tokenizer, phrase.strip() if sample.separator is not None else phrase)
    ]
    gone = tuple(phrase for place, phrase in enumerate(sample.phrases) if place not in kept)
    if not gone or not kept:
        return (sample if kept else None), gone
    pieces, grounded = sample.pieces, tuple(sample.grounded[place] for place in kept)
    if sample.separator is not None:
        pieces = tuple(piece for place in kept for piece in (sample.phrases[place], f"{sample.separator} "))
        pieces, grounded = (*pieces[:-1], sample.separator), tuple(range(0, 2 * len(kept), 2))
    masks = sample.mask_loader
    return (
        replace(sample, pieces=pieces, grounded=grounded, mask_loader=lambda: [masks()[place] for place in kept]),
        gone,
    )


class TrainingSet(Sequence[TrainingSample]):
    """The samples of all parts of a recipe, part after part; the trainer shuffles.

    Args:
        recipe: Its section ``data`` names parts and root; ``heads`` says how text stands around phrases.
        parts: Others than the training's, e.g. ``recipe.validation.parts``.

    Attributes:
        problems: Annotations that the readers left out or found unusual.
        digests: Per part, a hash of its annotation files.

    Raises:
        DataNotFound: Files are missing; the message says how to get them.
        BadAnnotation: A file is damaged.
    """

    def __init__(self, recipe: TrainRecipe, parts: Sequence[DataPart] | None = None) -> None:
        self.recipe = recipe
        self.parts = tuple(recipe.data.parts if parts is None else parts)
        self.problems: list[Problem] = []
        self.digests: dict[str, str] = {}
        self._samples: list[TrainingSample] = []
        for part in self.parts:
            self._samples += list(self._read(part))[: part.limit]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: Any) -> Any:
        return self._samples[index]

    def __iter__(self) -> Iterator[TrainingSample]:
        return iter(self._samples)

    @property
    def phrases(self) -> int:
        """Number of phrases of all samples."""
        return sum(len(sample.grounded) for sample in self)

    def _read(self, part: DataPart) -> Iterator[TrainingSample]:
        if part.dataset not in DATASETS:
            phrases = OwnDataset(part.dataset, part.split)
            self._note(part, phrases)
            yield from self._own(part, phrases)
            return
        root = data_root_of(self.recipe, part)
        if part.dataset == "png":
            narratives = PngDataset(root, part.split)
            self._note(part, narratives)
            for one in narratives:
                if part.singular:
                    single = tuple(phrase for phrase in one.phrases if all(phrase.things) and not phrase.plural)
                    one = replace(one, phrases=single)
                if one.phrases:
                    yield self._narrative(part, narratives, one)
            return
        refs = ReferDataset(root, part.dataset, part.split, part.by)
        self._note(part, refs)
        by_picture: dict[int, list[ReferItem]] = {}
        for item in refs:
            by_picture.setdefault(item.image_id, []).append(item)
        for image_id, items in by_picture.items():
            sample = self._expressions(part, refs, image_id, items)
            if sample is not None and part.questions:
                yield from self._questions(part, sample)
            elif sample is not None:
                yield sample

    def _own(self, part: DataPart, phrases: OwnDataset) -> Iterator[TrainingSample]:
        """Yield one sample per picture: its phrases that mean something."""
        separator = self.recipe.heads.separator
        by_picture: dict[int, list[PhraseItem]] = {}
        for item in phrases:
            if item.ann_ids:
                by_picture.setdefault(item.image_id, []).append(item)
        for image_id, items in by_picture.items():
            pieces = [piece for item in items for piece in (item.phrase, f"{separator} ")]
            yield TrainingSample(
                key=f"{part.dataset}/{part.split}/{image_id}",
                image_path=items[0].image_path,
                image_loader=partial(open_image, items[0].image_path, own.ORIENTATION),
                prompt=self.recipe.heads.prompt if part.prompt is None else part.prompt,
                pieces=(*pieces[:-1], separator),
                grounded=tuple(range(0, len(pieces), 2)),
                mask_loader=partial(_own_masks, items),
                keywords=bool(part.keywords),
                separator=separator,
            )

    def _note(self, part: DataPart, data: SplitReader[Any]) -> None:
        self.problems += data.problems
        self.digests[f"{part.dataset}/{part.split}"] = data.digest

    def _narrative(self, part: DataPart, data: PngDataset, one: Narrative) -> TrainingSample:
        return TrainingSample(
            key=f"png/{part.split}/{one.index}",
            image_path=one.image_path,
            image_loader=partial(open_image, one.image_path, png.ORIENTATION),
            prompt=self.recipe.heads.prompt if part.prompt is None else part.prompt,
            pieces=one.utterances,
            grounded=tuple(phrase.piece for phrase in one.phrases),
            mask_loader=partial(data.masks, one),
            keywords=part.keywords is not False and not part.singular,
        )

    def _expressions(
        self, part: DataPart, data: ReferDataset, image_id: int, items: Sequence[ReferItem]
    ) -> TrainingSample | None:
        """Draw one sentence of each object of an image; None if none is described."""
        separator = self.recipe.heads.separator
        pieces: list[str] = []
        chosen: dict[int, ReferItem] = {}  # by object: a second ref of the same one adds nothing
        for item in items:
            sentences = [sentence for sentence in item.sentences if sentence.strip()]
            if item.ann_id in chosen or not sentences:
                continue
            drawn = 0
            if part.sentences == "random":
                drawn = int(np.random.default_rng([self.recipe.seed, item.ref_id]).integers(len(sentences)))
            chosen[item.ann_id] = item
            pieces += [sentences[drawn].strip(), f"{separator} "]
        if not chosen:
            self.problems.append(Problem("picture without a sentence", f"{part.dataset} image {image_id}", len(items)))
            return None
        pieces[-1] = separator
        objects = list(chosen.values())
        return TrainingSample(
            key=f"{part.dataset}/{part.split}/{image_id}",
            image_path=objects[0].image_path,
            image_loader=partial(open_image, objects[0].image_path, refer.ORIENTATION),
            prompt=self.recipe.heads.prompt if part.prompt is None else part.prompt,
            pieces=tuple(pieces),
            grounded=tuple(range(0, 2 * len(objects), 2)),
            mask_loader=partial(_masks, data, objects),
            keywords=bool(part.keywords),
            separator=separator,
        )

    def _questions(self, part: DataPart, expressions: TrainingSample) -> Iterator[TrainingSample]:
        """Yield one sample per expression, written into a question that the seed draws."""
        for place, phrase in enumerate(expressions.phrases):
            image_id = int(expressions.key.rsplit("/", 1)[-1])
            drawn = np.random.default_rng([self.recipe.seed, image_id, place]).integers(len(part.questions))
            before, after = part.questions[int(drawn)].split("{}")
            yield replace(
                expressions,
                key=f"{part.dataset}/{part.split}/question/{image_id}/{place}",
                prompt=f"{before}{phrase}{after}",
                pieces=(before, phrase, after),
                grounded=(1,),
                mask_loader=partial(_one_mask, expressions, place),
                keywords=False,
                separator=None,
                in_question=True,
            )


def data_root_of(recipe: TrainRecipe, part: DataPart) -> str | Path | None:
    """Return the folder of a part's files: the one that a recipe names, or data that a package ships."""
    root = part.root or recipe.data.root
    if root is None or not bundled.is_data_root(root):
        return root
    return bundled.data_root(root, scenes=recipe.data.scenes)


def _one_mask(sample: TrainingSample, place: int) -> list[BoolMask]:
    return [sample.masks()[place]]


def _masks(data: ReferDataset, items: Sequence[ReferItem]) -> list[BoolMask]:
    return [data.mask(item) for item in items]


def _own_masks(items: Sequence[PhraseItem]) -> list[BoolMask]:
    return [item.mask() for item in items]
