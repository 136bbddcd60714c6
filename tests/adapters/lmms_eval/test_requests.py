"""Requests of both forms, and the chats that are made of them."""

from __future__ import annotations

import doctest
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from flmm_plugin.adapters.answering import chat, defaults
from flmm_plugin.adapters.answering import requests as answering
from flmm_plugin.adapters.lmms_eval import requests
from flmm_plugin.errors import BackboneUnsupported, BadAnnotation, BadImage

IMAGE = Image.new("RGB", (8, 6))


def instance(*arguments: Any, **metadata: Any) -> Any:
    return SimpleNamespace(args=arguments, metadata=metadata)


def test_both_forms_are_unpacked() -> None:
    options = {"max_new_tokens": 4}
    simple = instance("ask", options, lambda doc: [], 3, "mme", "test")
    chatty = instance("ask", lambda doc: [], {**options, "flmm_ground": True}, 4, "mme", "test", __padding_only__=True)
    first, second = requests.unpack([simple, chatty])
    assert (first.simple, first.doc_id, first.index, first.wants_masks, first.padding) == (True, 3, 0, False, False)
    assert (second.simple, second.doc_id, second.index, second.wants_masks, second.padding) == (False, 4, 1, True, True)
    assert first.options == options


def one(source: Any, *, simple: bool, context: str = "What is it?") -> requests.Request:
    return requests.Request(0, context, source, simple, {}, "mme", "test", 0, False)


def test_a_simple_request_has_placeholders_in_front() -> None:
    messages, pictures = requests.chat_of(one(lambda doc: [IMAGE, IMAGE], simple=True), {}, "<image>")
    assert messages == [{"role": "user", "content": "<image> <image>\nWhat is it?"}]
    assert pictures == [IMAGE, IMAGE]
    ready = one(lambda doc: [IMAGE], simple=True, context="In <image>, what is it?")
    assert requests.chat_of(ready, {}, "<image>")[0][0]["content"] == "In <image>, what is it?"
    assert requests.chat_of(one(None, simple=True), {}, "<image>") == ([{"role": "user", "content": "What is it?"}], [])


def test_a_chat_request_keeps_its_turns_and_order() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "First"}, {"type": "image", "url": IMAGE}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
    ]
    messages, pictures = requests.chat_of(one(lambda doc: turns, simple=False), {}, "<image>")
    assert messages == [
        {"role": "user", "content": [{"type": "text", "text": "First"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]},
    ]
    assert pictures == [IMAGE]


def test_what_is_no_picture_is_refused(tmp_path: Any) -> None:
    video = [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]
    with pytest.raises(BackboneUnsupported, match="video"):
        requests.chat_of(one(lambda doc: video, simple=False), {}, "<image>")
    with pytest.raises(BackboneUnsupported, match=r"a\.mp4"):
        requests.chat_of(one(lambda doc: ["a.mp4"], simple=True), {}, "<image>")
    with pytest.raises(BadImage):
        requests.chat_of(one(lambda doc: [str(tmp_path / "none.jpg")], simple=True), {}, "<image>")


def test_a_question_needs_its_fields_and_the_annotated_size(tmp_path: Any) -> None:
    path = tmp_path / "a.png"
    IMAGE.save(path)
    asked = one(None, simple=True)
    question = answering.question_of(asked, {"image_path": str(path), "expressions": ["it"], "height": 6, "width": 8})
    assert (question.image.size, question.phrases) == ((8, 6), ["it"])
    with pytest.raises(BadAnnotation, match="6 x 8, its annotation says 8 x 6"):
        answering.question_of(asked, {"image_path": str(path), "expressions": ["it"], "height": 8, "width": 6})
    with pytest.raises(BadAnnotation, match="expressions"):
        answering.question_of(asked, {"image_path": str(path)})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"do_sample": False, "temperature": None, "top_p": None, "num_beams": 1, "max_new_tokens": 1024}),
        ({"temperature": 0.7, "top_p": 0.9}, {"do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ({"temperature": 0, "do_sample": True}, {"do_sample": False, "temperature": None}),
        ({"until": ["\n\n"], "max_new_tokens": 16, "num_beams": 2}, {"max_new_tokens": 16, "num_beams": 2}),
        ({"temperature": None}, {"do_sample": False}),
    ],
)
def test_generation_arguments_are_read_as_llava_hf_reads_them(given: Any, expected: Any) -> None:
    options = chat.generate_options(given, end_token=2)
    assert {name: options[name] for name in expected} == expected
    assert (options["pad_token_id"], options["eos_token_id"]) == (2, 2)
    assert "until" not in options


def test_templates_that_take_no_strings_get_parts() -> None:
    assert chat.takes_strings(lambda messages: f"USER: {messages[0]['content']}")
    assert not chat.takes_strings(lambda messages: "USER: " + "".join(part["text"] for part in messages[0]["content"]))
    assert not chat.takes_strings(lambda messages: "USER:")
    turn = [{"role": "user", "content": "<image>\nWhat is it?"}]
    assert chat.as_the_template_likes(turn, True, "<image>") == turn
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    assert chat.as_the_template_likes(turn, False, "<image>") == [{"role": "user", "content": parts}]


@pytest.mark.parametrize("module", [answering, chat, defaults])
def test_examples_in_the_documentation_run(module: Any) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)
