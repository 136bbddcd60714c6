"""YAML that is none, or that speaks of itself, is named with its place."""

from __future__ import annotations

import pytest
import yaml

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.yaml_text import read_yaml

_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
_MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("one: 1\nkey: " + "[" * 900, "line 2"),
        ("key: &a [*a]", "line 1"),
        ("key: &a {again: *a}", "holds itself"),
        ("[" * 60 + "]" * 60, "too deeply"),
        (_BOMB, "references"),
        (_MERGES, "references"),
        ("key: [1, 2", "not YAML"),
        ("key: 2001-99-99", "not YAML"),
        ("key: \x00", "not YAML"),
        ("? [a]\n: 1\n? {b: 1}\n: 2", "not YAML"),
        ("a: 1\n---\nb: 2", "not YAML"),
        ("key: !!python/object/apply:os.system [ls]", "not YAML"),
    ],
    ids=range(12),
)
def test_what_cannot_be_read_is_named(text: str, word: str) -> None:
    with pytest.raises(UnknownArgument, match=word) as raised:
        read_yaml(text, "some.yaml")
    assert "some.yaml" in str(raised.value)


@pytest.mark.parametrize("text", ["", "a: 1", "base: &b {x: 1}\nown: {<<: *b, y: [1.5, null, 2001-01-01]}", "- 1"])
def test_what_is_yaml_is_read_as_the_safe_loader_reads_it(text: str) -> None:
    assert read_yaml(text, "some.yaml") == yaml.safe_load(text)
