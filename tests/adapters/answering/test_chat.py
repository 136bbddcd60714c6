"""Generation options: read as lmms-eval's ``llava_hf`` reads a task's, and what somebody gave by hand counts."""

from __future__ import annotations

import pytest

from flmm_plugin.adapters.answering.chat import GIVEN, generate_options, given_by_hand
from flmm_plugin.errors import UnknownArgument


def test_a_tasks_options_are_read_as_llava_hf_reads_them() -> None:
    made = generate_options({"temperature": 0, "top_k": 5, "repetition_penalty": 1.5, "until": ["x"]}, end_token=2)
    assert made["max_new_tokens"] == 1024
    assert not {"top_k", "repetition_penalty", "until"} & set(made)


def test_options_given_by_hand_reach_generate() -> None:
    options = {"temperature": 0.5, "top_k": 5, "do_sample": False, "repetition_penalty": "None"}
    named = given_by_hand(options)
    assert named == "top_k+do_sample+repetition_penalty"
    made = generate_options({**options, "min_p": 0.1, GIVEN: named}, end_token=2)
    assert (made["top_k"], made["do_sample"], made["repetition_penalty"]) == (5, False, None)
    assert "min_p" not in made


@pytest.mark.parametrize(("name", "said"), [("topk", "top_k"), ("until", "max_new_tokens"), ("max_length", "max_new")])
def test_what_would_be_ignored_is_refused(name: str, said: str) -> None:
    with pytest.raises(UnknownArgument, match=said):
        given_by_hand({name: 3})
