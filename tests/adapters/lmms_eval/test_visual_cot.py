"""Which requests get a second look, and what comes back."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from flmm_plugin.adapters.answering.arguments import ModelArguments
from flmm_plugin.adapters.answering.defaults import Defaults
from flmm_plugin.adapters.answering.visual_cot import VisualCotMode, question_of_chat
from flmm_plugin.adapters.lmms_eval.model import FlmmModel
from flmm_plugin.errors import UnknownArgument
from flmm_plugin.options import LoadOptions
from flmm_plugin.records import ChatAnswer, parse_masks_json
from flmm_plugin.visual_cot import VisualCotAnswer


class FakeLMM:
    """Answers a chat with "plain", and a second look with its variant and question."""

    def __init__(self) -> None:
        self.looks: list[tuple[int, Any, dict[str, Any]]] = []
        self.seal = SimpleNamespace(verify=lambda: None)
        self.heads, self.loaded = None, ""
        tokenizer = SimpleNamespace(eos_token_id=2)
        self.backbone = SimpleNamespace(tokenizer=tokenizer, image_token="<image>", device="cpu", render=str)

    def load_heads(self, heads: str, **_: Any) -> None:
        self.loaded = heads

    def need_heads(self) -> None:
        """It has no real ones."""

    def chat_batch(self, messages: list[Any], images: list[Any], **_: Any) -> list[ChatAnswer]:
        return [ChatAnswer("plain", (5,)) for _ in messages]

    def visual_cot_batch(self, asked: list[Any], options: Any, **generate: Any) -> list[VisualCotAnswer]:
        self.looks.append((len(asked), options, generate))
        if any("poison" in one.question for one in asked):
            raise RuntimeError("out of memory")
        return [
            VisualCotAnswer(
                f"{options.variant} {one.question}|{one.instruction}", (5, 6), options.variant, "", None,
                (0, 0, 4, 4), "crop",
            )
            for one in asked
        ]  # fmt: skip


class FakeModel(FlmmModel):
    defaults = Defaults("flmm_fake", "fake")

    def load(self, arguments: ModelArguments, device: str) -> FakeLMM:
        self.asked = arguments
        return FakeLMM()


def ask(one: Any, docs: list[Any], options: dict[str, Any] | None = None, pictures: int = 1) -> list[Any]:
    one.task_dict["some"] = {"test": docs}
    listed = []
    for doc_id in range(len(docs)):
        show = lambda doc: [doc["image"]] * pictures  # noqa: E731
        arguments = (f"question {docs[doc_id].get('text', doc_id)}", dict(options or {}), show, doc_id, "some", "test")
        listed.append(SimpleNamespace(args=arguments, metadata={}))
    return [getattr(reply, "text", reply) for reply in one.generate_until(listed)]


def stock(*texts: str) -> list[dict[str, Any]]:
    return [{"image": Image.new("RGB", (6, 5)), "text": text} for text in texts]


@pytest.fixture
def own(tmp_path: Path) -> list[dict[str, Any]]:
    """Documents of a task of this plugin; the second picture is damaged."""
    Image.new("RGB", (6, 5)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    return [
        {"image_path": str(tmp_path / f"{number}.png"), "question": f"Q{number}", "instruction": "\nI"}
        for number in range(2)
    ]


def test_the_model_argument_turns_every_stock_question() -> None:
    one = FakeModel(device="cpu", visual_cot="v2", visual_cot_scale="1.5", visual_cot_refine="true", batch_size=2)
    assert (one.asked.device, one.asked.options, one.asked.grounding) == ("cpu", LoadOptions(), {})
    replies = ask(one, stock("a", "b", "c"), {"max_new_tokens": 7})
    assert replies == ["v2 question a|", "v2 question b|", "v2 question c|"]
    assert [size for size, _, _ in one.lmm.looks] == [2, 1]
    _, options, generate = one.lmm.looks[0]
    assert (options.refine, options.box_scale, options.views, generate["max_new_tokens"]) == (True, 1.5, "auto", 7)
    facts = {"variant": "v2", "views": "crop", "refine": True, "box_scale": 1.5}
    assert one.visual_cot.facts(several_images=False) == facts
    assert one.visual_cot.facts(several_images=True) == {**facts, "views": "both"}


def test_without_it_stock_questions_are_chat() -> None:
    one = FakeModel(device="cpu")
    assert ask(one, stock("a")) == ["plain"]
    assert one.lmm.looks == []
    assert one.visual_cot.facts(several_images=True) is None


@pytest.mark.parametrize(("mark", "reply"), [("none", "plain"), (False, "plain"), ("text v1", "v1 question a|")])
def test_a_task_s_mark_stands_above_the_argument(mark: Any, reply: str) -> None:
    assert ask(FakeModel(device="cpu", visual_cot="v2"), stock("a"), {"flmm_visual_cot": mark}) == [reply]


def test_chats_of_no_or_several_pictures_are_answered_directly() -> None:
    one = FakeModel(device="cpu", visual_cot="v1")
    assert ask(one, stock("a"), pictures=2) == ask(one, stock("a"), pictures=0) == ["plain"]
    assert one.lmm.looks == []


def test_own_tasks_get_json_and_errors_in_json(own: list[Any]) -> None:
    one = FakeModel(device="cpu", batch_size=2)
    good, bad = ask(one, own, {"flmm_visual_cot": "v1"})
    content = json.loads(good)
    assert (content["text"], content["size"], content["visual_cot"]["views"]) == ("v1 Q0|\nI", [5, 6], "crop")
    error = parse_masks_json(bad).error
    assert error is not None
    assert error["type"] == "BadImage"


def test_a_failure_costs_one_answer() -> None:
    one = FakeModel(device="cpu", visual_cot="v1", batch_size=3)
    assert ask(one, stock("a", "poison", "c")) == ["v1 question a|", "", "v1 question c|"]


def test_arguments_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UnknownArgument, match="v1, v2"):
        FakeModel(device="cpu", visual_cot="v3")
    with pytest.raises(UnknownArgument, match="visual_cot_refine"):
        VisualCotMode("v1", refine="maybe")
    with pytest.raises(UnknownArgument, match="visual_cot_scale"):
        VisualCotMode("v1", scale="big")
    with pytest.raises(UnknownArgument, match="needs heads"):
        FakeModel(device="cpu", visual_cot="v1", heads="none")
    with pytest.raises(UnknownArgument, match="flmm_visual_cot is one of"):
        ask(FakeModel(device="cpu"), stock("a"), {"flmm_visual_cot": "v9"})
    with pytest.raises(UnknownArgument, match="heads=<file>"):
        ask(FakeModel(device="cpu", heads="none"), stock("a"), {"flmm_visual_cot": "v1"})


def test_questions_are_read_from_both_forms_of_chat() -> None:
    picture = Image.new("RGB", (6, 5))
    system = {"role": "system", "content": "Be brief."}
    parts = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
    found = question_of_chat([system, parts], [picture], "<image>")
    assert found is not None
    assert (found.question, found.system) == ("What?", (system,))
    plain = question_of_chat([{"role": "user", "content": "<image>\nWhat?\nBriefly."}], [picture], "<image>")
    assert plain is not None
    assert plain.question == "What?\nBriefly."
    turns = [parts, {"role": "assistant", "content": "A."}, {"role": "user", "content": "And?"}]
    assert question_of_chat(turns, [picture], "<image>") is None
    assert question_of_chat([{"role": "user", "content": "<image>"}], [picture], "<image>") is None
