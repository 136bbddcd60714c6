"""The kit's messages as requests, and back: what is asked, what a model may see, what a failure is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from flmm_plugin.adapters.vlmevalkit import messages
from flmm_plugin.errors import BackboneUnsupported, BadImage
from flmm_plugin.records import parse_masks_json


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3)).save(path)
    return str(path)


def test_a_stock_message_becomes_one_turn_in_its_own_order(picture: str) -> None:
    parts = [
        {"type": "text", "value": "Look:"},
        {"type": "image", "value": picture},
        {"type": "text", "value": "what?"},
    ]
    request = messages.request_of(parts, "MME")
    assert not any([request.wants_masks, request.gives_text, request.wants_grounded_chat])
    turns, pictures = messages.chat_of(request, messages.document_of(request), "<image>")
    content = [{"type": "text", "text": "Look:"}, {"type": "image"}, {"type": "text", "text": "what?"}]
    assert turns == [{"role": "user", "content": content}]
    assert [one.size for one in pictures] == [(4, 3)]


def test_roles_make_turns() -> None:
    parts = [
        {"type": "text", "value": "Be brief.", "role": "system"},
        {"type": "text", "value": "Hello", "role": "user"},
        {"type": "text", "value": "Yes", "role": "assistant"},
    ]
    turns, _ = messages.chat_of(messages.request_of(parts, None), {"message": parts}, "<image>")
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant"]


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    for part, error in [
        ({"type": "video", "value": "a.mp4"}, BackboneUnsupported),
        ({"type": "image", "value": str(tmp_path / "none.png")}, BadImage),
    ]:
        with pytest.raises(error):
            messages.chat_of(messages.request_of([part], None), {"message": [part]}, "<image>")


def test_a_document_is_asked_without_its_answers(picture: str) -> None:
    doc = {
        "image_path": picture,
        "height": 3,
        "width": 4,
        "expressions": ["it"],
        "masks": ["secret"],
        "answer": "secret",
    }
    message = messages.message_of(doc, "Segment it", {"flmm_ground": True, "do_sample": False}, 7)
    assert "secret" not in str(message)
    request = messages.request_of(message, "RefCOCO_SEG_val")
    assert request.wants_masks
    assert (request.task, request.doc_id, request.options["do_sample"]) == ("RefCOCO_SEG_val", 7, False)
    assert messages.document_of(request)["expressions"] == ["it"]


def test_a_digest_is_of_words_marks_and_the_picture_s_content(picture: str) -> None:
    message = messages.message_of({"image_path": picture, "expressions": ["it"]}, "Segment", {"flmm_ground": True}, 0)
    other = messages.message_of({"image_path": picture, "expressions": ["that"]}, "Segment", {"flmm_ground": True}, 0)
    first = messages.digest_of(message, "D")
    assert first == messages.digest_of(message, "D")
    assert len({first, messages.digest_of(message, "E"), messages.digest_of(other, "D")}) == 3
    os.utime(picture, (1, 1))
    moved = Path(picture).rename(Path(picture).with_name("b.png"))
    elsewhere = messages.message_of(
        {"image_path": str(moved), "expressions": ["it"]}, "Segment", {"flmm_ground": True}, 0
    )
    assert messages.digest_of(elsewhere, "D") == first, "where a picture lies and when it came there decides nothing"
    status = moved.stat()
    moved.write_bytes(moved.read_bytes()[:-1] + b"x")
    os.utime(moved, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert messages.digest_of(elsewhere, "D") != first, "another content of the same size and time is another picture"


def test_a_failure_is_scored_as_an_error_record_and_nothing_else_is_touched() -> None:
    reply = messages.failure("BadImage: a.png")
    assert messages.is_failure(reply)
    read = parse_masks_json(messages.as_scored(reply))
    assert read.text == ""
    assert read.error is not None
    assert "BadImage: a.png" in read.error["message"]
    assert messages.as_scored("Yes") == "Yes"
