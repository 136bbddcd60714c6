"""Build the page: a picture with masks, a chat whose words can be clicked, attention to mix, a second look, sharing.

Custom components in ``parts/`` do what gradio's own cannot: the picture takes clicks, drags and arrow keys, and the
chat is made of words. Gradio fills their templates and then *evaluates* them as JavaScript template strings, so
whatever a model or a visitor wrote passes through `_safe` first.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import gradio as gr
import numpy as np
from PIL import Image

from flmm_plugin.errors import EmptyPhrase, FlmmError
from flmm_plugin.figures import NamedMask, colours, mask_layer
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.images import open_image
from flmm_plugin.records import Grounding, Groundings
from flmm_plugin.reports.attention_figures import cluster_maps, cluster_view, heat_map, seen_by_grid, sharpest_maps
from flmm_plugin.reports.templating import as_base64, fill
from flmm_plugin.serve.conversation import Conversation, Looking, mixed, words_of

P = ParamSpec("P")
R = TypeVar("R")

_PARTS = Path(__file__).with_name("parts")
_LONGEST_SIDE = 1024  # pixels of a picture as it is shown
_MOST_WORDS = 12  # of the ranking
_HINT = (
    "Ask something about the picture, or type a phrase to find. Click a word to see its mask, and click or drag on the "
    "picture to see which words look there."
)
_ABOUT = "Words are grounded by the frozen model's own attention; the chat is what the model says without the plugin."


@dataclass(frozen=True)
class Example:
    """A picture to begin with.

    Attributes:
        picture: The picture, RGB, any size.
        questions: What can be asked about it.
    """

    picture: Image.Image
    questions: tuple[str, ...] = ()


class _Visit:
    """Hold what is one visitor's: the conversation, and what of it is in sight."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.turn = -1
        self.phrase = ""
        self.chosen: list[tuple[int, int]] = []


def build_page(lmm: GroundedLMM, examples: Sequence[Example] = (), *, max_new_tokens: int = 64) -> gr.Blocks:
    """Return the page for one model; ``launch`` of it serves it.

    Args:
        lmm: The model; visitors use it one after another.
        examples: Pictures to choose from; the first one is there at the start.
        max_new_tokens: Length limit of an answer.
    """
    return _Page(lmm, examples, max_new_tokens).blocks


def _refused(run: Callable[P, R]) -> Callable[P, R]:
    """Show an expected error as a message on the page instead of a traceback."""

    @functools.wraps(run)
    def shown(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return run(*args, **kwargs)
        except FlmmError as exc:
            raise gr.Error(str(exc), duration=None, print_exception=False) from exc

    return shown


class _Page:
    def __init__(self, lmm: GroundedLMM, examples: Sequence[Example], max_new_tokens: int) -> None:
        self.lmm = lmm
        self.examples = list(examples)
        self.max_new_tokens = max_new_tokens
        self._shared = tempfile.TemporaryDirectory(prefix="flmm-")  # gone when the process ends
        self.blocks = gr.Blocks(title="F-LMM", analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600))
        with self.blocks:
            self._lay_out()
            self._connect()

    def _lay_out(self) -> None:
        facts = self.lmm.backbone.facts
        heads = "without heads: no masks" if self.lmm.heads is None else "with heads"
        shape = f"{facts.layers} layers x {facts.heads} heads, {heads}."
        gr.Markdown(f"## F-LMM: {_plain(self.lmm.backbone.name)}\n{shape} {_ABOUT}")
        self.visit = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                self.picture = _part("picture", _picture(None, []), "picture")
                with gr.Row():
                    self.upload = gr.UploadButton("Choose a picture", file_types=["image"], size="md", elem_id="upload")
                    self.again = gr.Button("New conversation", size="md")
                if self.examples:
                    shown = [_address(_small(one.picture), "JPEG", quality=85) for one in self.examples]
                    self.choices = _part("examples", {"examples": shown}, "examples")
            with gr.Column(scale=2, min_width=320):
                self.chat = _part("chat", {"turns": [], "running": None, "hint": _HINT}, "chat")
                self.question = gr.Textbox(
                    label="Question",
                    placeholder="What is in the picture?",
                    submit_btn="Ask",
                    max_length=4000,
                    elem_id="question",
                )
                self.suggested = gr.Dataset(
                    components=[gr.Textbox(visible=False)],
                    samples=[],
                    label="Questions to try",
                    visible=False,
                    elem_id="suggested",
                )
                self.phrase = gr.Textbox(
                    label="Find a phrase",
                    placeholder="the small red circle",
                    submit_btn="Find",
                    max_length=500,
                    elem_id="phrase",
                )
                self.told = gr.Markdown(elem_id="told")
        with gr.Tab("Words that look here"):
            self.ranked = _part("ranked", {"rows": []}, "ranked")
        with gr.Tab("Attention"):
            with gr.Row():
                self.mixed_phrase = gr.Textbox(
                    label="Phrase", submit_btn="Show attention", max_length=500, elem_id="mixed-phrase"
                )
            with gr.Row():
                with gr.Column(min_width=320):
                    self.heads = _part("heads", {"sheet": ""}, "heads")
                with gr.Column(min_width=320):
                    self.mixer = gr.Image(
                        label="Chosen maps, mixed",
                        interactive=False,
                        format="png",
                        buttons=["fullscreen"],
                        elem_id="mixer",
                    )
                    with gr.Row():
                        self.all_heads = gr.Button("All heads", size="sm")
                        self.sharp_heads = gr.Button("The eight sharpest", size="sm", elem_id="sharp")
                    self.clusters = gr.Image(
                        label="K-means of all maps", interactive=False, format="png", buttons=["fullscreen"]
                    )
        with gr.Tab("Second look"):
            self.looked = gr.Textbox(label="Question", submit_btn="Look twice", max_length=4000, elem_id="twice")
            with gr.Row():
                self.whole = gr.Image(label="What the question is about", interactive=False, format="png", buttons=[])
                self.cut = gr.Image(
                    label="The cut that the answer looked at", interactive=False, format="png", buttons=[]
                )
            self.compared = gr.Markdown(elem_id="compared")
        with gr.Tab("Share"):
            with gr.Row():
                self.save = gr.Button("Make a page to share", elem_id="save")
                self.coco = gr.Button("Masks as COCO JSON", elem_id="coco")
            self.file = gr.File(label="One file, with everything in it", interactive=False, elem_id="file")
            self.json = gr.Textbox(
                label="COCO JSON", lines=8, max_lines=8, interactive=False, buttons=["copy"], elem_id="json"
            )

    def _connect(self) -> None:
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        seen = [self.visit, self.picture, self.chat, self.suggested, self.told, self.ranked, self.heads]
        asked = [self.visit, self.picture, self.chat, self.question, self.told]
        found = [self.picture, self.chat, self.told]
        mixer = [self.heads, self.mixer, self.clusters]
        self.upload.upload(self._uploaded, self.upload, seen, **model)
        self.again.click(self._begun_again, self.visit, seen, **model)
        if self.examples:
            self.choices.select(self._example, None, seen, **model)
            self.blocks.load(lambda: self._begin(self.examples[0]), None, seen, **model)
        self.question.submit(self._asked, [self.visit, self.question], asked, **model)
        self.suggested.click(lambda row: row[0], self.suggested, self.question, api_visibility="private").then(
            self._asked, [self.visit, self.question], asked, **model
        )
        self.phrase.submit(self._found, [self.visit, self.phrase], [*found, self.mixed_phrase], **model)
        gr.on([self.chat.select, self.ranked.select], self._word, self.visit, [*found, self.mixed_phrase], **model)
        self.picture.select(self._place, self.visit, [self.ranked, self.told], **model)
        self.mixed_phrase.submit(self._maps, [self.visit, self.mixed_phrase], mixer, **model)
        self.heads.select(self._head, self.visit, [self.heads, self.mixer], **model)
        self.all_heads.click(lambda visit: self._chosen(visit, 0), self.visit, [self.heads, self.mixer], **model)
        self.sharp_heads.click(lambda visit: self._chosen(visit, 8), self.visit, [self.heads, self.mixer], **model)
        self.looked.submit(self._twice, [self.visit, self.looked], [self.whole, self.cut, self.compared], **model)
        self.save.click(self._saved, self.visit, self.file, **model)
        self.coco.click(self._as_coco, self.visit, self.json, **model)

    # --- events: each returns what `_connect` lists as its outputs ---------------------------------------------------

    def _begin(self, example: Example) -> tuple[Any, ...]:
        visit = _Visit(Conversation(self.lmm, example.picture, self.max_new_tokens))
        suggested = gr.Dataset(samples=[[one] for one in example.questions], visible=bool(example.questions))
        return visit, *self._looks(visit), suggested, "", {"rows": []}, {"sheet": ""}

    @_refused
    def _uploaded(self, path: str) -> tuple[Any, ...]:
        return self._begin(Example(open_image(path)))

    def _example(self, event: gr.EventData) -> tuple[Any, ...]:
        return self._begin(self.examples[event._data["index"]])

    @_refused
    def _begun_again(self, visit: _Visit | None) -> tuple[Any, ...]:
        visit = _begun(visit)
        return self._begin(Example(visit.conversation.picture))

    def _asked(self, visit: _Visit | None, question: str) -> Iterator[tuple[Any, ...]]:
        kept = gr.skip()
        try:
            visit = _begun(visit)
            conversation = visit.conversation
            for text in conversation.ask(question):
                yield kept, kept, _chat(visit, {"question": _safe(question), "text": _safe(text)}), "", ""
        except FlmmError as exc:
            raise gr.Error(str(exc), duration=None, print_exception=False) from exc
        visit.turn = len(conversation.turns) - 1
        yield visit, *self._looks(visit), "", ""

    @_refused
    def _found(self, visit: _Visit | None, phrase: str) -> tuple[Any, ...]:
        visit = _begun(visit)
        found = visit.conversation.find(phrase)
        return *self._looks(visit, found), _told(found), phrase

    @_refused
    def _word(self, visit: _Visit | None, event: gr.EventData) -> tuple[Any, ...]:
        visit = _begun(visit)
        data = event._data
        found = visit.conversation.find_word(data["turn"], data["part"], data["word"])
        visit.turn = data["turn"]
        return *self._looks(visit, found), _told(found), found.phrase

    @_refused
    def _place(self, visit: _Visit | None, event: gr.EventData) -> tuple[Any, ...]:
        visit = _begun(visit)
        ranked = visit.conversation.words_at(tuple(event._data["region"]))
        best = ", ".join(f"**{_plain(one.word)}**" for one in ranked[:3] if one.lift > 1)
        told = f"Looks there most: {best}" if best else "No word looks there more than elsewhere."
        return _ranked(ranked[:_MOST_WORDS]), told

    @_refused
    def _maps(self, visit: _Visit | None, phrase: str) -> tuple[Any, ...]:
        visit = _begun(visit)
        maps = visit.conversation.attention(phrase)
        visit.phrase, visit.chosen = phrase, sharpest_maps(maps.maps, 8)
        sheet, image = self._mixed(visit)
        view = cluster_view(cluster_maps(maps.maps), _fitted(seen_by_grid(visit.conversation.picture, maps.grid).size))
        return sheet, image, view

    @_refused
    def _head(self, visit: _Visit | None, event: gr.EventData) -> tuple[Any, ...]:
        visit = _begun(visit)
        visit.chosen = sorted({*visit.chosen} ^ {(event._data["layer"], event._data["head"])})
        return self._mixed(visit)

    @_refused
    def _chosen(self, visit: _Visit | None, sharpest: int) -> tuple[Any, ...]:
        """Choose the sharpest maps; 0: none, which means all of them."""
        visit = _begun(visit)
        maps = visit.conversation.attention(visit.phrase)
        visit.chosen = sharpest_maps(maps.maps, sharpest)
        return self._mixed(visit)

    @_refused
    def _twice(self, visit: _Visit | None, question: str) -> tuple[Any, ...]:
        conversation = _begun(visit).conversation
        direct, twice = conversation.look_twice(question)
        size = _fitted(conversation.picture.size)
        picture = conversation.picture.convert("RGBA").resize(size)
        if twice.grounding is not None:
            picture.alpha_composite(mask_layer([twice.grounding], size))
        seen = "the whole picture and the cut" if twice.views == "both" else "the cut alone"
        said = (
            f"Directly: **{_plain(direct.text)}**\n\nAfter a second look ({seen}): **{_plain(twice.text)}**\n\n"
            f"It looked for: {_plain(twice.thought) or 'nothing that it could name'}"
        )
        return picture.convert("RGB"), conversation.picture.crop(twice.crop), said

    @_refused
    def _saved(self, visit: _Visit | None) -> str:
        visit = _begun(visit)
        page = Path(tempfile.mkdtemp(dir=self._shared.name)) / "conversation.html"
        with page.open("w", encoding="utf-8") as stream:
            stream.writelines(shared_page(visit.conversation, self.lmm.backbone.name))
        return str(page)

    @_refused
    def _as_coco(self, visit: _Visit | None) -> str:
        conversation = _begun(visit).conversation
        every = [one for turn in conversation.turns for one in (*turn.found, *turn.asked)] + conversation.phrases
        return json.dumps(Groundings(every).to_coco(), ensure_ascii=False)

    # --- what is seen ------------------------------------------------------------------------------------------------

    def _looks(self, visit: _Visit, only: Grounding | None = None) -> tuple[Any, Any]:
        """Return the values of the picture and of the chat."""
        shown = visit.conversation.shown(visit.turn)
        return _picture(visit.conversation.picture, shown, only), _chat(visit)

    def _mixed(self, visit: _Visit) -> tuple[Any, Any]:
        """Return the sheet of all maps with the chosen ones marked, and the mixture over the picture."""
        attention = visit.conversation.attention(visit.phrase)
        layers, heads, rows, columns = attention.maps.shape
        low = attention.maps.min(axis=(2, 3), keepdims=True)
        span = attention.maps.max(axis=(2, 3), keepdims=True) - low
        scaled = (attention.maps - low) / np.where(span > 0, span, 1)
        tiled = scaled.transpose(0, 2, 1, 3).reshape(layers * rows, heads * columns)
        sheet = heat_map(tiled, None, (heads * columns, layers * rows))
        chosen = set(visit.chosen)
        cells = [
            {"layer": layer, "head": head, "on": str((layer, head) in chosen).lower()}
            for layer in range(layers)
            for head in range(heads)
        ]
        view = seen_by_grid(visit.conversation.picture, attention.grid)
        image = heat_map(mixed(attention.maps, visit.chosen), view, _fitted(view.size))
        return {"sheet": _address(sheet, "PNG"), "columns": heads, "rows": layers, "cells": cells}, image


def shared_page(conversation: Conversation, model: str) -> Iterator[str]:
    """Write a conversation as one HTML file that needs nothing else.

    Args:
        conversation: Its turns and typed phrases are shown, each with its masks.
        model: Name of the model, for the title.
    """
    turns = [
        {"turn": turn, "picture": _picture(conversation.picture, [*turn.found, *turn.asked])}
        for turn in conversation.turns
    ]
    typed = _picture(conversation.picture, conversation.phrases)
    return fill("conversation.html", title=f"F-LMM: {model}", notes=[_ABOUT], turns=turns, typed=typed)


def _part(name: str, value: Any, elem_id: str) -> gr.HTML:
    """Return one of the custom components in ``parts/``."""
    html, css, script = ((_PARTS / f"{name}.{ending}").read_text(encoding="utf-8") for ending in ("html", "css", "js"))
    return gr.HTML(value, html_template=html, css_template=css, js_on_load=script, elem_id=elem_id)


def _picture(picture: Image.Image | None, shown: Sequence[Grounding], only: Grounding | None = None) -> dict[str, Any]:
    """Return the value of the picture component: the picture, and one layer for each mask."""
    if picture is None:
        return {"src": "", "name": "", "width": 4, "height": 3, "layers": [], "frames": []}
    size = _fitted(picture.size)
    layers = []
    for one, colour in zip(shown, colours(len(shown)), strict=True):
        layer = mask_layer([NamedMask(one.phrase, one.mask)], size, palette=[colour])
        score = f"{one.score:.2f}" if one.mask.any() else "empty mask"
        layers.append(
            {"src": _address(layer, "PNG"), "label": _safe(one.phrase), "colour": _css(colour), "score": score}
        )
    frames = (
        []
        if only is None or not only.mask.any()
        else [{"style": _frame(only, picture.size), "label": _safe(only.phrase)}]
    )
    src = _address(picture.resize(size, Image.Resampling.LANCZOS), "JPEG", quality=90)
    return {"src": src, "name": "the picture", "width": size[0], "height": size[1], "layers": layers, "frames": frames}


def _chat(visit: _Visit, running: dict[str, str] | None = None) -> dict[str, Any]:
    """Return the value of the chat component: every turn in pieces, of which the words can be clicked."""
    turns = []
    for number, turn in enumerate(visit.conversation.turns):
        palette = [_css(one) for one in colours(len(visit.conversation.shown(number)))] if number == visit.turn else []
        turns.append(
            {
                "question": _pieces(number, turn.question, turn.asked, palette[len(turn.found) :]),
                "answer": _pieces(number, turn.text.strip() and turn.text, turn.found, palette),
                "same": turn.same,
                "stock": _safe(turn.stock),
                "times": f"answer {turn.seconds[0]:.1f} s, masks {turn.seconds[1] - turn.seconds[0]:.1f} s",
            }
        )
    return {"turns": turns, "running": running, "hint": _HINT}


def _pieces(turn: int, text: str, found: Sequence[Grounding], palette: Sequence[str]) -> list[dict[str, Any]]:
    """Split a text into words and what stands between them; a word that is grounded has its mask's colour."""
    pieces: list[dict[str, Any]] = []
    end = 0
    for number, (start, stop) in enumerate(words_of(text)):
        pieces.append({"word": False, "text": _safe(text[end:start])})
        colour = ""
        for one, shade in zip(found, palette, strict=False):
            if one.span is not None and one.span[0] <= start < one.span[1]:
                colour = shade
        pieces.append({"word": True, "text": _safe(text[start:stop]), "turn": turn, "number": number, "colour": colour})
        end = stop
    return [*pieces, {"word": False, "text": _safe(text[end:])}]


def _told(found: Grounding) -> str:
    if not found.mask.any():
        return f"**{_plain(found.phrase)}**: empty mask"
    x0, y0, x1, y1 = (round(side) for side in found.box)
    return (
        f"**{_plain(found.phrase)}**: box {x0}, {y0} to {x1}, {y1}; score {found.score:.2f} (how sure its pixels are)"
    )


def _ranked(ranked: Sequence[Looking]) -> dict[str, Any]:
    """Return the value of the ranking, the first word's bar as long as can be."""
    rows = [
        {
            "turn": one.turn,
            "part": one.part,
            "number": one.number,
            "text": _safe(one.word),
            "place": f"{one.part} {one.turn + 1}",
            "share": round(100 * one.lift / max(ranked[0].lift, 1e-12), 1),
            "lift": f"{one.lift:.1f}",
        }
        for one in ranked
    ]
    return {"rows": rows}


def _begun(visit: _Visit | None) -> _Visit:
    """Return the visit.

    Raises:
        EmptyPhrase: There is no picture yet.
    """
    if visit is None:
        raise EmptyPhrase("there is no picture yet; choose one first")
    return visit


def _fitted(size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height of a picture as it is shown."""
    scale = _LONGEST_SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _small(picture: Image.Image) -> Image.Image:
    """Return a picture as a thumbnail."""
    small = picture.copy()
    small.thumbnail((240, 160))
    return small


def _frame(found: Grounding, size: tuple[int, int]) -> str:
    x0, y0, x1, y1 = found.box
    places = {"left": x0 / size[0], "top": y0 / size[1], "width": (x1 - x0) / size[0], "height": (y1 - y0) / size[1]}
    return "; ".join(f"{name}: {100 * share:.3f}%" for name, share in places.items())


def _address(image: Image.Image, form: str, **options: Any) -> str:
    return f"data:image/{form.lower()};base64,{as_base64(image, form, **options)}"


def _css(colour: tuple[int, int, int]) -> str:
    return f"rgb{colour}"


def _safe(text: str) -> str:
    """Write text as HTML in which every mark that means something to a template or to JavaScript is an entity."""
    return "".join(mark if mark.isalnum() or mark in " ,.;:?!" else f"&#{ord(mark)};" for mark in text)


def _plain(text: str) -> str:
    """Escape what a model or a visitor wrote, so that Markdown shows it as it is."""
    return _safe(text.strip()).replace(".", "&#46;").replace("!", "&#33;")
