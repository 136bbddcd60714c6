"""No absolute path, and so no user name, in what is shown to others."""

from __future__ import annotations

import getpass

import pytest

from flmm_plugin.redaction import public, public_text


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("/Users/ann/models/llava", "llava"),
        ("/Users/ann/my models/llava 7b/", "llava 7b"),
        ("~/llava", "llava"),
        ("~ann/llava", "llava"),
        ("file:///Users/ann/x.pth", "x.pth"),
        (r"C:\Users\ann\x.pth", "x.pth"),
        (r"\\server\ann\x.pth", "x.pth"),
        ("/Users/ann", "~"),
        (f"{'/home'}/ann", "~"),
        ("/Users/ann/", "~"),
        ("~", "~"),
        (f"/scratch/{getpass.getuser()}", "~"),
        ("/", "/"),
        ("pretrained=/Users/ann/my models/llava,dtype=auto", "pretrained=llava,dtype=auto"),
        ("flmm train x data.root=/Users/ann/d --out /Users/ann/runs/y", "flmm train x data.root=d --out y"),
        ("['/Users/ann/a', '/Users/ann/b']", "['a', 'b']"),
        ("cannot read /Users/ann/x.pth (/Users/ann/y)", "cannot read x.pth (y)"),
    ],
)
def test_of_a_path_its_name_stays(value: str, right: str) -> None:
    assert public(value) == right
    assert public({value: [(value,)]}) == {right: [[right]]}


@pytest.mark.parametrize(
    "text",
    [
        "llava-hf/llava-1.5-7b-hf", "runs/x/heads.safetensors", "./x", "../x", "https://hub.co/a/b", "[INST] a [/INST]",
        "<s>a</s>", "and/or", "1 /2", "a / b", "USER: {image}\n{prompt} ASSISTANT:", "", "None", "s3://bucket/key",
    ],
)  # fmt: skip
def test_what_is_no_path_of_this_machine_stays(text: str) -> None:
    assert public(text) == text
    assert public_text(text) == text


def test_other_values_stay() -> None:
    assert public({"a": [1, 2.5, None, True]}) == {"a": [1, 2.5, None, True]}
