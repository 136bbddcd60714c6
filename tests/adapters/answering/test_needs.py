"""What a model and its tasks need."""

from __future__ import annotations

from flmm_plugin.adapters.answering.needs import reads


def test_a_reader_has_the_last_word() -> None:
    assert not reads("flmm_gcg_test")
    assert reads("flmm_tiny_refcoco")
