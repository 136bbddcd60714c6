"""The request loop with a stand-in for the LMM: order, batches, failures, the seal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from loguru import logger
from PIL import Image

from flmm_plugin.adapters.answering.arguments import ModelArguments
from flmm_plugin.adapters.answering.defaults import Defaults
from flmm_plugin.adapters.lmms_eval import classes
from flmm_plugin.adapters.lmms_eval.model import FlmmModel
from flmm_plugin.errors import FrozenWeightsChanged, UnknownArgument
from flmm_plugin.options import LoadOptions
from flmm_plugin.records import ChatAnswer, Grounding, parse_masks_json


class FakeLMM:
    """Answers a chat with its own words, and a phrase with the pixels whose red value is the phrase's length."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.options: dict[str, Any] = {}
        self.seal = SimpleNamespace(verify=lambda: None)
        self.heads, self.loaded = None, ""
        tokenizer = SimpleNamespace(eos_token_id=2)
        self.backbone = SimpleNamespace(tokenizer=tokenizer, image_token="<image>", device="cpu", render=str)

    def load_heads(self, heads: str, **_: Any) -> None:
        self.loaded = heads

    def need_heads(self) -> None:
        """It has no real ones."""

    def chat_batch(self, messages: list[Any], images: list[Any], **options: Any) -> list[ChatAnswer]:
        self.calls.append(("chat", len(messages)))
        self.options = options
        texts = [chat[0]["content"] for chat in messages]
        if any("poison" in str(text) for text in texts):
            raise RuntimeError("out of memory")
        return [ChatAnswer(f"{text} ({len(shown)})", (5, 6)) for text, shown in zip(texts, images, strict=True)]

    def ground_many(self, images: list[Any], phrases: list[Any], batch_size: int = 8) -> list[list[Grounding]]:
        self.calls.append(("ground", len(images)))
        return [[self._found(image, phrase) for phrase in some] for image, some in zip(images, phrases, strict=True)]

    @staticmethod
    def _found(image: Image.Image, phrase: str) -> Grounding:
        if phrase == "poison":
            raise RuntimeError("out of memory")
        red = np.asarray(image)[:, :, 0]
        return Grounding.from_logits(phrase, np.where(red == len(phrase), 1, -1).astype(np.float32))


class FakeModel(FlmmModel):
    defaults = Defaults("flmm_fake", "fake")

    def load(self, arguments: ModelArguments, device: str) -> FakeLMM:
        self.asked = (arguments, device)
        return FakeLMM()


def model(**arguments: Any) -> Any:
    return FakeModel(device="cpu", **arguments)


def ask(one: Any, docs: list[Any], options: Any = None, *, task: str = "some", form: str = "simple") -> list[Any]:
    """The model's replies to one request per document."""
    one.task_dict[task] = {"test": docs}
    listed = []
    for doc_id, doc in enumerate(docs):
        own = dict((options or {}) if not callable(options) else options(doc_id))
        picture = (own, lambda doc: [doc["image"]]) if form == "simple" else (messages_of, own)
        arguments = (f"question {doc.get('text', doc_id)}", *picture, doc_id, task, "test")
        listed.append(SimpleNamespace(args=arguments, metadata={}))
    return [getattr(reply, "text", reply) for reply in one.generate_until(listed)]


def messages_of(doc: Any) -> Any:
    content = [{"type": "image", "url": doc["image"]}, {"type": "text", "text": "chat"}]
    return [{"role": "user", "content": content}]


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)


@pytest.fixture
def pictures(tmp_path: Path) -> list[dict[str, Any]]:
    """Grounding documents whose left half is "abc" (red 3) and whose right half is "defg" (red 4)."""
    docs = []
    for number in range(5):
        pixels = np.zeros((6, 8 + 2 * number, 3), dtype=np.uint8)
        pixels[:, :4, 0], pixels[:, 4:, 0] = 3, 4
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path)
        docs.append({"image_path": str(path), "expressions": ["defg", "abc"], "height": 6, "width": pixels.shape[1]})
    return docs


GROUND = {"flmm_ground": True, "do_sample": False}


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_replies_come_in_the_order_of_the_requests(batch_size: int) -> None:
    docs = [{"image": Image.new("RGB", (4, 4)), "text": str(number)} for number in range(7)]
    one = model(batch_size=batch_size)
    lengths = [4, 8, 4, 8, 8, 4, 4]
    replies = ask(one, docs, lambda doc_id: {"max_new_tokens": lengths[doc_id]})
    assert replies == [f"<image>\nquestion {number} (1)" for number in range(7)]
    assert max(size for _, size in one.lmm.calls) <= batch_size
    assert sum(size for _, size in one.lmm.calls) == 7


def test_replies_are_handed_over_as_soon_as_all_before_them_are_there() -> None:
    docs = [{"image": Image.new("RGB", (4, 4))} for _ in range(5)]
    one = model()
    one.task_dict["some"] = {"test": docs}
    lengths = [4, 8, 4, 4, 8]  # answered length by length: 0, 2, 3, then 1 and 4
    requests = [
        SimpleNamespace(
            args=(f"question {n}", {"max_new_tokens": lengths[n]}, lambda doc: [doc["image"]], n, "some", "test"),
            metadata={"__padding_only__": True} if n == 2 else {},
        )
        for n in range(5)
    ]
    stream = one.answers(requests)
    seen = []
    for _ in range(5):  # nobody comes back after the last
        reply = next(stream)
        seen.append((getattr(reply, "text", reply).removeprefix("<image>\n"), len(one.lmm.calls)))
    assert [text for text, _ in seen] == ["question 0 (1)", "question 1 (1)", "", "question 3 (1)", "question 4 (1)"]
    assert [calls for _, calls in seen] == [1, 3, 3, 3, 4]


def test_chat_form_is_answered_as_well() -> None:
    one = model()
    assert ask(one, [{"image": Image.new("RGB", (4, 4))}], form="chat") == [
        "[{'type': 'image'}, {'type': 'text', 'text': 'chat'}] (1)"
    ]
    assert one.lmm.options["max_new_tokens"] == 1024


@pytest.mark.parametrize("batch_size", [1, 3])
def test_masks_are_of_each_picture_s_own_size_and_in_order(pictures: list[Any], batch_size: int) -> None:
    replies = [parse_masks_json(reply) for reply in ask(model(batch_size=batch_size), pictures, GROUND)]
    for reply, doc in zip(replies, pictures, strict=True):
        right, left = reply.masks
        assert right.shape == left.shape == (6, doc["width"])
        assert left[:, :4].all()
        assert not left[:, 4:].any()
        assert np.array_equal(right, ~left)
        assert [phrase["phrase"] for phrase in reply.phrases] == ["defg", "abc"]


def test_sentences_of_one_picture_are_asked_together_and_answered_in_order(pictures: list[Any]) -> None:
    order = [0, 1, 0, 2, 1, 0, 0]
    words = ["abc", "abc", "defg", "defg", "defg", "poison", "abc"]
    docs = [{**pictures[place], "expressions": [word]} for place, word in zip(order, words, strict=True)]
    docs += [{"image_path": "none.png", "expressions": ["abc"]}, {**pictures[2], "expressions": ["abc", "defg"]}]
    one = model()
    replies = [json.loads(reply) for reply in ask(one, docs, GROUND)]
    assert one.lmm.calls[:1] == [("ground", 4)]  # one of which fails, so that each is asked alone
    assert ("ground", 2) in one.lmm.calls
    assert "error" in replies[5]
    assert "error" in replies[7]
    for doc, word, reply in zip(docs, [*words, "", "abc"], replies, strict=True):
        if "error" not in reply:
            (mask, *_) = parse_masks_json(json.dumps(reply)).masks
            assert mask.sum() == (24 if word == "abc" else 6 * (doc["width"] - 4))


def test_the_task_says_what_is_wanted_and_the_text_does_not(pictures: list[Any]) -> None:
    one = model()
    doc = {**pictures[0], "image": Image.new("RGB", (4, 4)), "text": "segment the masks, flmm_ground"}
    assert ask(one, [doc]) == ["<image>\nquestion segment the masks, flmm_ground (1)"]
    assert parse_masks_json(ask(one, [doc], GROUND)[0]).error is None


def test_one_bad_picture_costs_one_answer(pictures: list[Any], said: list[str]) -> None:
    Path(pictures[1]["image_path"]).write_bytes(b"no picture")
    pictures[3]["width"] += 1
    replies = [parse_masks_json(reply) for reply in ask(model(batch_size=5), pictures, GROUND)]
    assert [reply.error and reply.error["type"] for reply in replies] == [None, "BadImage", None, "BadAnnotation", None]
    assert [len(reply.masks) for reply in replies] == [2, 0, 2, 0, 2]
    summary = [line for line in said if "FAILED" in line]
    assert len(summary) == 1
    assert "2 of 5 requests FAILED on rank 0" in summary[0]
    assert "BadImage 1" in summary[0]
    assert "BadAnnotation 1" in summary[0]
    assert any("no answer for some document 1: BadImage" in line for line in said)


def test_a_batch_that_fails_is_asked_one_by_one(pictures: list[Any], said: list[str]) -> None:
    pictures[2]["expressions"] = ["abc", "poison"]
    one = model(batch_size=3)
    replies = [parse_masks_json(reply) for reply in ask(one, pictures, GROUND)]
    assert [reply.error and reply.error["message"] for reply in replies] == [None, None, "out of memory", None, None]
    assert one.lmm.calls == [("ground", 3), ("ground", 1), ("ground", 1), ("ground", 1), ("ground", 2)]
    docs = [{"image": Image.new("RGB", (4, 4)), "text": text} for text in ("a", "poison", "c")]
    assert ask(model(batch_size=3), docs) == ["<image>\nquestion a (1)", "", "<image>\nquestion c (1)"]
    assert sum("FAILED" in line for line in said) == 2


def test_a_failed_request_is_marked_as_one_that_cannot_be_cached(pictures: list[Any]) -> None:
    from lmms_eval.caching.response_cache import is_deterministic

    Path(pictures[0]["image_path"]).unlink()
    kept = [dict(GROUND), dict(GROUND)]
    one = model()
    one.task_dict["some"] = {"test": pictures[:2]}
    one.generate_until([SimpleNamespace(args=("", kept[i], None, i, "some", "test"), metadata={}) for i in range(2)])
    assert [is_deterministic("generate_until", options) for options in kept] == [False, True]


def test_padding_requests_cost_nothing(pictures: list[Any]) -> None:
    one = model()
    one.task_dict["some"] = {"test": pictures}
    padding = SimpleNamespace(args=("", dict(GROUND), None, 0, "some", "test"), metadata={"__padding_only__": True})
    assert one.generate_until([padding]) == [""]
    assert one.lmm.calls == []


def test_masks_without_heads_are_refused_before_anything_runs(pictures: list[Any]) -> None:
    for none in ("none", None, "None"):
        one = model(heads=none)
        assert one.asked[0].heads is None
        with pytest.raises(UnknownArgument, match="heads=<file>"):
            ask(one, pictures, GROUND)
        assert one.lmm.calls == []


def test_arguments_reach_the_lmm() -> None:
    one = model(
        pretrained="x", heads="h.safetensors", dtype="float32", merge="max", system_prompt="none", batch_size="4"
    )
    asked, device = one.asked
    assert (asked.pretrained, asked.heads, asked.options, device) == (
        "x", "h.safetensors", LoadOptions(dtype="float32"), "cpu",
    )  # fmt: skip
    assert asked.grounding == {"merge": "max"}
    assert one.batch_size == 4
    asked, _ = model(device_map="auto", max_batch_size=9).asked
    assert (asked.pretrained, asked.heads, asked.options, asked.grounding) == (
        "fake", "auto", LoadOptions(device_map="auto"), {},
    )  # fmt: skip


def test_unknown_arguments_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownArgument, match="did you mean 'heads'"):
        model(head="x")
    with pytest.raises(UnknownArgument, match="batch_size 'auto'"):
        model(batch_size="auto")


def test_the_seal_is_checked_once_at_the_end(said: list[str]) -> None:
    one = model()
    one.clean()
    one.clean()
    assert sum("seal holds" in line for line in said) == 1
    with pytest.raises(RuntimeError, match="make a new one"):
        _ = one.tokenizer

    broken = model()

    def fail() -> None:
        raise FrozenWeightsChanged("lm_head.weight changed")

    broken.lmm.seal.verify = fail
    with pytest.raises(FrozenWeightsChanged, match="lm_head"):
        broken.clean()
    assert (one.seal_broken, broken.seal_broken) == (False, True)


def test_the_simple_form_is_the_same_model() -> None:
    simple = classes.FlmmTinySimple
    assert (simple.is_simple, simple.__name__) == (True, "FlmmTinySimple")
    assert issubclass(simple, classes.FlmmTiny)
    with pytest.raises(AttributeError, match="FlmmTiniest"):
        _ = classes.FlmmTiniest


def test_multi_round_tasks_are_not_offered() -> None:
    with pytest.raises(NotImplementedError, match="single rounds"):
        model().generate_until_multi_round([])


def test_replies_are_json_that_other_tools_read(pictures: list[Any]) -> None:
    content = json.loads(ask(model(), pictures[:1], GROUND)[0])
    assert content["size"] == [6, 8]
    assert content["masks"][0]["size"] == [6, 8]
    assert content["boxes"][1] == {"x_min": 0.0, "y_min": 0.0, "x_max": 0.5, "y_max": 1.0}
