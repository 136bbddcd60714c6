"""lmms-eval's own response cache: a killed run goes on, a changed part is asked again, a failure is never an answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.caching.response_cache import ResponseCache
from PIL import Image

from flmm_plugin.adapters.answering.visual_cot import VisualCotMode
from flmm_plugin.adapters.lmms_eval import answer_cache
from flmm_plugin.adapters.lmms_eval.answer_cache import is_answer, keep_answers_one_by_one
from flmm_plugin.errors import OutputFailed
from flmm_plugin.records import error_json


class Killed(BaseException):
    """Stands for the end of a process: nothing catches it."""


class Stock:
    """Hands over all answers at once, and is killed before the third."""

    rank = 0

    def __init__(self, lives: int = 99, who: str = "model", colour: int = 0) -> None:
        self.asked: list[int] = []
        self.lives, self.who = lives, who
        picture = Image.new("RGB", (4, 4), (colour, 0, 0))
        self.task_dict = {"some": {"test": [{"image": picture} for _ in range(4)]}}
        self.lmm = SimpleNamespace(backbone=SimpleNamespace(image_token="<image>", system_prompt=who))
        self.fails: tuple[int, ...] = ()

    def each(self, requests: list[Instance]) -> Iterator[Any]:
        for request in requests:
            if len(self.asked) == self.lives:
                raise Killed
            padding = "__padding_only__" in request.metadata
            if not padding:
                self.asked.append(request.doc_id)
            if request.request_type == "loglikelihood":
                yield (0.0, False) if padding else (float("inf") if request.doc_id in self.fails else 0.5, True)
            else:
                yield "" if padding or request.doc_id in self.fails else f"{self.who}: {request.args[0]}"

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        return list(self.each(requests))

    loglikelihood = generate_until


class Ours(Stock):
    """Hands them over one by one."""

    answers_with_masks = True
    answers = losses = Stock.each
    visual_cot = VisualCotMode()

    def get_ready(self, requests: Any) -> None:
        """It answers chats alone."""


def instances(kind: str, **options: Any) -> list[Instance]:
    shows = (lambda doc: [doc["image"]],)
    middle = ({"temperature": 0, **options}, *shows) if kind == "generate_until" else ("yes", *shows)
    return [
        Instance(kind, (f"question {n}", *middle, n, "some", "test"), 0, {"task": "some", "doc_id": n, "repeats": 1})
        for n in range(4)
    ]


def evaluate(
    model: Any, folder: Path, kind: str = "generate_until", requests: Any = None, rank: int = 0, ranks: int = 1
) -> list[Any]:
    """One process of lmms-eval, as far as its cache is concerned."""
    cache = ResponseCache.create(str(folder), model="flmm_tiny", model_args="a=b", world_size=ranks, global_rank=rank)
    done = False
    try:
        answers: list[Any] = cache.execute(model, kind, instances(kind) if requests is None else requests)
        done = not getattr(model, "seal_broken", False)
    finally:
        if done or getattr(model, "seal_broken", False):
            cache.finalize(success=done)
        else:
            cache.close()
    return answers


@pytest.fixture(autouse=True)
def wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("execute", "finalize"):
        monkeypatch.setattr(ResponseCache, name, getattr(ResponseCache, name))  # as it was, whoever wrapped it
    for name in ("LMMS_CACHE_RUN_ID", "SLURM_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    keep_answers_one_by_one()


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_a_killed_run_goes_on_where_it_was_with_no_variable_set(tmp_path: Path, kind: str) -> None:
    for lives, left in ((2, [0, 1]), (1, [2])):
        killed = Ours(lives=lives)
        with pytest.raises(Killed):
            evaluate(killed, tmp_path, kind)
        assert killed.asked == left
    last = Ours()
    assert len(evaluate(last, tmp_path, kind)) == 4
    assert last.asked == [3]
    again = Ours(lives=0)
    assert len(evaluate(again, tmp_path, kind)) == 4


def test_answers_of_several_ranks_are_taken_over_by_any_number_of_them(tmp_path: Path) -> None:
    for rank in range(2):
        with pytest.raises(Killed):
            evaluate(Ours(lives=1), tmp_path, requests=instances("generate_until")[rank::2], rank=rank, ranks=2)
    one = Ours()
    evaluate(one, tmp_path)
    assert one.asked == [2, 3]


def test_a_log_that_was_cut_in_the_middle_of_a_letter_costs_that_answer_alone(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        evaluate(Ours(lives=3, who="日本"), tmp_path)
    (log,) = tmp_path.glob("runs/*/*.jsonl")
    content = log.read_bytes()
    log.write_bytes(content[: content.rindex("本".encode()) + 1])
    second = Ours(who="日本")
    evaluate(second, tmp_path)
    assert second.asked == [2, 3]


def test_what_was_taken_over_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Killed):
        evaluate(Ours(lives=2), tmp_path)
    evaluate(Ours(), tmp_path)
    read: list[int] = []

    def empty(path: Path) -> tuple[()]:
        read.append(path.stat().st_size)
        return ()

    monkeypatch.setattr(answer_cache.json_lines, "read", empty)
    evaluate(Ours(lives=0), tmp_path)
    assert sum(read) == 0


@pytest.mark.parametrize("changed", [{"who": "other weights"}, {"colour": 9}])
def test_another_model_or_picture_under_the_same_name_is_asked(tmp_path: Path, changed: dict[str, Any]) -> None:
    evaluate(Ours(), tmp_path)
    other = Ours(**changed)
    assert evaluate(other, tmp_path)[0].startswith(other.who)
    assert other.asked == [0, 1, 2, 3]


def chats(words: str = "what?", **options: Any) -> list[Instance]:
    def messages(doc: Any) -> Any:
        content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": words}]
        return [{"role": "user", "content": content}]

    asked = ("the same context", messages, {"temperature": 0, **options}, 0, "some", "test")
    return [Instance("generate_until", asked, 0, {"task": "some", "doc_id": 0, "repeats": 1})]


@pytest.mark.parametrize("changed", [{"colour": 9}, {"words": "who?"}, {}])
def test_chats_are_known_by_their_messages_and_pictures(tmp_path: Path, changed: dict[str, Any]) -> None:
    evaluate(Ours(), tmp_path, requests=chats())
    other = Ours(colour=changed.get("colour", 0))
    evaluate(other, tmp_path, requests=chats(changed.get("words", "what?")))
    assert len(other.asked) == bool(changed)


@pytest.mark.parametrize("changed", ["picture", "phrases", "target"])
def test_documents_of_mask_tasks_are_known_by_what_the_model_sees(tmp_path: Path, changed: str) -> None:
    path = tmp_path / "a.png"
    doc: dict[str, Any] = {"image_path": str(path), "expressions": ["a dog"], "masks": [1]}
    asked = []
    for now in (False, True):
        Image.new("RGB", (4, 4), (now and changed == "picture", 0, 0)).save(path)
        if now:
            doc |= {"phrases": {"expressions": ["a cat"]}, "target": {"masks": [2]}}.get(changed, {})
        model = Ours()
        model.task_dict["some"]["test"][0] = doc
        ground = ("same", {"flmm_ground": True}, None, 0, "some", "test")
        request = Instance("generate_until", ground, 0, {"task": "some", "doc_id": 0, "repeats": 1})
        evaluate(model, tmp_path / "cache", requests=[request])
        asked.append(len(model.asked))
    assert asked == [1, changed != "target"]


def test_options_that_lmms_eval_leaves_out_of_its_key_are_in_it(tmp_path: Path) -> None:
    evaluate(Ours(), tmp_path)
    other = Ours()
    evaluate(other, tmp_path, requests=instances("generate_until", length_penalty=2))
    assert other.asked == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_a_failure_is_asked_again_also_after_a_kill(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMMS_CACHE_RUN_ID", "one")  # lmms-eval replays the log of a run with the same id
    first = Ours(lives=3)
    first.fails = (1,)
    with pytest.raises(Killed):
        evaluate(first, tmp_path, kind)
    second = Ours()
    second.fails = (1,)
    answers = evaluate(second, tmp_path, kind)
    assert second.asked == [1, 3]
    assert answers[1] == ("" if kind == "generate_until" else (float("inf"), True))
    third = Ours()
    evaluate(third, tmp_path, kind)
    assert third.asked == [1]


@pytest.mark.parametrize("kind", ["generate_until", "loglikelihood"])
def test_a_request_that_pads_a_rank_leaves_nothing(tmp_path: Path, kind: str) -> None:
    *real, last = instances(kind)
    last.metadata["__padding_only__"] = True
    assert evaluate(Ours(), tmp_path, kind, requests=[*real, last])[3] == ("" if kind[0] == "g" else (0.0, False))
    whole = Ours()
    evaluate(whole, tmp_path, kind)
    assert whole.asked == [3]


def test_a_run_with_a_broken_seal_leaves_nothing(tmp_path: Path) -> None:
    broken = Ours()
    broken.seal_broken = True  # type: ignore[attr-defined]
    evaluate(broken, tmp_path)
    second = Ours()
    evaluate(second, tmp_path)
    assert second.asked == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [sqlite3.OperationalError("database or disk is full"), OSError(28, "No space left")])
def test_a_cache_that_takes_no_answer_is_named(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(ResponseCache, "_store", full)
    with pytest.raises(OutputFailed, match=str(tmp_path)):
        evaluate(Ours(), tmp_path)


def test_a_document_that_cannot_be_read_is_asked_every_time(tmp_path: Path) -> None:
    for _ in range(2):
        model = Ours()
        del model.task_dict["some"]["test"][2]["image"]
        evaluate(model, tmp_path)
    assert model.asked == [2]


def test_other_models_are_left_to_lmms_eval(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        evaluate(Stock(lives=2), tmp_path)
    second = Stock()
    assert len(evaluate(second, tmp_path)) == len(second.asked) == 4


def test_it_is_wrapped_once() -> None:
    before = ResponseCache.execute, ResponseCache.finalize
    keep_answers_one_by_one()
    assert before == (ResponseCache.execute, ResponseCache.finalize)


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("a dog", True),
        ('{"masks": [], "text": ""}', True),
        ('{"an open brace and "error" in words', True),
        (GenerationResult("yes"), True),
        ((0.5, False), True),
        ("", False),
        (" \n", False),
        (GenerationResult(""), False),
        (error_json(RuntimeError("out of memory")), False),
        ((float("inf"), False), False),
        ((float("nan"), True), False),
    ],
)
def test_what_an_answer_is(reply: Any, right: bool) -> None:
    assert is_answer(reply) is right
