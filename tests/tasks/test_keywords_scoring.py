"""Keywords of a reply beside noun chunks; spaCy itself is stood in for, so that no test needs it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from flmm_plugin.errors import BadImage, ToolNotFound
from flmm_plugin.records import error_json, parse_masks_json
from flmm_plugin.tasks.documents import Document
from flmm_plugin.tasks.keywords import noun_chunks, scoring
from flmm_plugin.tasks.keywords.noun_chunks import NounChunks, load_noun_chunks
from flmm_plugin.tasks.metrics.bootstrap import statistic_of
from flmm_plugin.tasks.png.benchmark import read_documents
from tests.tasks import metric_names

Folder = Callable[..., Any]


@pytest.fixture
def doc(png_folder: Folder) -> Document:
    first: Document = read_documents("val", {"root": png_folder().root})[0]
    assert first["text"] == "There is a brown cat and another, so two cats on grass."
    return first


def reply(doc: Document, *phrases: str, spans: bool = True) -> str:
    listed = [
        {"phrase": words, "span": [doc["text"].index(words), doc["text"].index(words) + len(words)] if spans else None}
        for words in phrases
    ]
    return json.dumps({"text": doc["text"], "phrases": listed, "masks": []})


def test_words_and_phrases_of_a_reply(doc: Document) -> None:
    sample = scoring.score_reply(doc, reply(doc, "There", "brown cat", "grass"))
    # Wanted: a brown cat, another, two cats, grass: 7 words in 4 phrases.
    assert sample["F1"] == {"right": 3, "picked": 4, "wanted": 7}
    assert sample["phrase_F1"] == {"right": 2, "picked": 3, "wanted": 4}
    assert scoring.precision([sample["precision"]]) == 75
    assert scoring.recall([sample["recall"]]) == pytest.approx(300 / 7)
    assert scoring.f1([sample["F1"]]) == pytest.approx(600 / 11)
    assert not any(name.startswith("spacy") for name in sample)
    assert sample["complete"] == {"count": 1, "expected": None}
    assert sample["reference"]["spans"] == [list(span) for span in doc["spans"]]


def test_replies_without_spans_are_found_by_their_words_in_order(doc: Document) -> None:
    found = scoring.spans_of(parse_masks_json(reply(doc, "a", "a", "nowhere", "cat", spans=False)), doc["text"])
    assert [doc["text"][start:end] for start, end in found] == ["a", "a", "cat"]
    # "is a", then "and": each next one is looked for behind the last.
    assert found[0][0] < found[1][0] < found[2][0]
    odd = parse_masks_json(json.dumps({"phrases": [{"phrase": "x", "span": [3, 900]}, {"phrase": "", "span": None}]}))
    assert scoring.spans_of(odd, doc["text"]) == [(3, len(doc["text"]))]


def test_failed_replies_pick_nothing_and_count(doc: Document) -> None:
    for said in (error_json(BadImage("x")), "the cat"):
        sample = scoring.score_reply(doc, said)
        assert sample["F1"] == {"right": 0, "picked": 0, "wanted": 7}
        assert sample["errors"] == {"count": 1}
    assert scoring.precision([sample["precision"]]) is None
    assert scoring.f1([sample["F1"]]) == 0


def fake_spacy(pipelines: dict[str, Any]) -> ModuleType:
    """A module that loads pipelines whose noun chunks are the words of four letters or more."""

    class Chunk:
        def __init__(self, start: int, word: str) -> None:
            self.start_char, self.end_char = start, start + len(word)

    def pipeline(text: str) -> Any:
        chunks = [Chunk(text.index(word), word) for word in text.replace(".", " ").split() if len(word) > 3]
        return SimpleNamespace(noun_chunks=iter(chunks))

    def load(name: str) -> Any:
        if name not in pipelines:
            raise OSError(f"[E050] Can't find model {name!r}")
        pipeline.meta = {"version": pipelines[name]}  # type: ignore[attr-defined]
        return pipeline

    module = ModuleType("spacy")
    module.load, module.__version__ = load, "9.9"  # type: ignore[attr-defined]
    return module


class Blank:
    """A pipeline without a parser, which spaCy loads all the same."""

    def __call__(self, text: str) -> Blank:
        return self

    @property
    def noun_chunks(self) -> Any:
        raise ValueError("[E029] `noun_chunks` requires the dependency parse")


def test_noun_chunks_stand_beside_with_their_versions(doc: Document, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", fake_spacy({"en_core_web_sm": "3.8"}))
    chunks = load_noun_chunks()
    assert chunks.name == "spacy 9.9 en_core_web_sm 3.8"
    sample = scoring.score_reply({**doc, "noun_chunks": chunks.spans(doc["text"])}, reply(doc, "grass"))
    # There, brown, another, cats, grass.
    assert sample["spacy_recall"] == {"right": 4, "picked": 5, "wanted": 7}
    assert sample["F1"] == {"right": 1, "picked": 1, "wanted": 7}
    assert set(sample) == {*metric_names.KEYWORDS, "reference"}
    assert len(sample["reference"]["noun_chunks"]) == 5
    logged = json.loads(json.dumps(sample))
    assert scoring.score_reply(scoring.logged_document(logged), reply(doc, "grass")) == logged
    for name in (one for one in metric_names.KEYWORDS if one not in ("items", "errors", "complete")):
        function = {"F1": scoring.f1, "recall": scoring.recall, "precision": scoring.precision}[name.split("_")[-1]]
        assert statistic_of(function)([sample[name]]) == pytest.approx(function([sample[name]]))


def test_a_missing_spacy_or_pipeline_is_said_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ToolNotFound, match="pip install spacy"):
        load_noun_chunks()
    monkeypatch.setitem(sys.modules, "spacy", fake_spacy({}))
    with pytest.raises(ToolNotFound, match="download en_core_web_sm"):
        load_noun_chunks()
    module = fake_spacy({"en_core_web_sm": "3.8"})
    monkeypatch.setitem(sys.modules, "spacy", module)
    monkeypatch.setattr(module, "load", lambda name: Blank())
    with pytest.raises(ToolNotFound, match="E029"):
        load_noun_chunks()


def test_the_pipeline_is_asked_by_one_thread_at_a_time(doc: Document) -> None:
    from concurrent.futures import ThreadPoolExecutor

    inside: list[int] = []

    def pipeline(text: str) -> Any:
        inside.append(1)
        assert len(inside) == 1
        sum(range(20000))
        inside.pop()
        return SimpleNamespace(noun_chunks=[])

    chunks = NounChunks(pipeline, "slow")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(chunks.spans, [doc["text"]] * 16)) == [[]] * 16


def test_the_task_lists_the_metrics_with_their_aggregations() -> None:
    yaml.SafeLoader.add_constructor("!function", lambda loader, node: node.value)
    content = yaml.safe_load(Path(noun_chunks.__file__).with_name("flmm_keywords.yaml").read_text())
    assert [entry["metric"] for entry in content["metric_list"]] == list(metric_names.KEYWORDS)
    assert content["generation_kwargs"]["flmm_given_text"] == "keywords"
