"""The pytest plugin: one case per check, a failure that shows the difference, and nothing for who does not ask."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flmm_plugin.adapters.preservation import proof
from flmm_plugin.adapters.preservation.verdict import Answer, RunRecord, Verdict, compare, decide, logits_check

pytest_plugins = ["pytester"]

PLUGIN = ("-p", "flmm_plugin.adapters.preservation.pytest_plugin", "-p", "no:cacheprovider")
EARLIER = ("-p", "flmm_plugin.adapters.lmms_eval.pytest_plugin", "-p", "no:cacheprovider")


def verdict(said: str) -> Verdict:
    one = Answer("generate_until/mme/0/0", "mme", 0, "is it ?", text="yes", ids=(1, 2), prompt="p", inputs={"x": "1"})
    stock = RunRecord("stock", "llava_hf", {}, {one.key: one}, {"mme": {"score,none": 1.0}}, {"w": "1"})
    ours = replace(stock, role="F-LMM", answers={one.key: replace(one, text=said)})
    return decide([stock, ours], compare(stock, ours, logits_check(True, "equal")))


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been run; the F-LMM run says `plan.model_args["said"]`."""
    seen: list[Any] = []

    def preserve(plan: Any) -> Verdict:
        seen.append(plan)
        return verdict(str(plan.model_args.get("said", "yes")))

    monkeypatch.setattr(proof, "prove", preserve)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # those of this environment are not what is tested
    return seen


def test_every_check_is_a_case(pytester: pytest.Pytester, plans: list[Any]) -> None:
    result = pytester.runpytest_inprocess(
        *EARLIER, "--flmm-preserve", "flmm_tiny", "--flmm-preserve-tasks", "mme,pope", "--flmm-preserve-limit", "5",
        "--flmm-preserve-out", "kept",
    )  # fmt: skip
    result.assert_outcomes(passed=9, skipped=1)
    (plan,) = plans
    assert (plan.model, plan.tasks, plan.limit, str(plan.out), plan.device) == (
        "flmm_tiny", ("mme", "pope"), 5.0, "kept", "cpu",
    )  # fmt: skip


def test_a_changed_chat_fails_its_cases_and_shows_the_sample(pytester: pytest.Pytester, plans: list[Any]) -> None:
    result = pytester.runpytest_inprocess(*PLUGIN, "--flmm-preserve", "flmm_tiny", "--flmm-preserve-args", "said=no")
    result.assert_outcomes(passed=7, failed=2, skipped=1)
    result.stdout.fnmatch_lines(["*CHAT CHANGED*", "*first difference: texts, mme document 0*", "*'yes'*|*'no'*"])
    assert len(plans) == 1


def test_the_fixture_gives_the_verdict(pytester: pytest.Pytester, plans: list[Any]) -> None:
    pytester.makepyfile(
        """
        def test_chat(flmm_preserve):
            assert flmm_preserve("flmm_tiny", "mme", limit=2).unchanged
            assert not flmm_preserve("flmm_tiny", "mme", "said=no", limit=2).unchanged
        """
    )
    pytester.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=1)
    assert [plan.limit for plan in plans] == [2, 2]


def test_who_does_not_ask_gets_nothing(pytester: pytest.Pytester, plans: list[Any]) -> None:
    pytester.makepyfile("def test_mine(): pass")
    pytester.runpytest_inprocess(*PLUGIN).assert_outcomes(passed=1)
    assert plans == []
