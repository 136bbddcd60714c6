r"""A pytest plugin: the proof of preservation as test cases of any project's suite.

It is loaded where it is asked for, so a suite that does not ask pays nothing. On the command line every check becomes a
test case (``--junitxml`` and all else that pytest has works as ever)::

    pytest -p flmm_plugin.adapters.preservation.pytest_plugin --flmm-preserve flmm_llava \
        --flmm-preserve-args pretrained=llava-hf/llava-1.5-7b-hf,heads=heads.safetensors \
        --flmm-preserve-tasks mme,pope --flmm-preserve-limit 50

In a test, with ``pytest_plugins = ["flmm_plugin.adapters.preservation.pytest_plugin"]`` in the top conftest.py::

    def test_chat_is_untouched(flmm_preserve):
        verdict = flmm_preserve("flmm_tiny", "mme", limit=20)
        assert verdict.unchanged, verdict.reason
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flmm_plugin.adapters.preservation.verdict import Verdict


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, in a group of their own."""
    group = parser.getgroup("flmm-preserve", "proof that a grounded LMM's chat is what it is without flmm-plugin")
    group.addoption("--flmm-preserve", metavar="MODEL", help="add a test case per check for this model, e.g. flmm_tiny")
    group.addoption("--flmm-preserve-args", metavar="ARGS", default="", help="its arguments: name=value,name=value")
    group.addoption("--flmm-preserve-tasks", metavar="TASKS", default="mme", help="tasks (default: mme)")
    group.addoption("--flmm-preserve-limit", metavar="N", type=float, help="documents per task (default: all)")
    group.addoption("--flmm-preserve-device", metavar="DEVICE", default="cpu", help="of both models (default: cpu)")
    group.addoption("--flmm-preserve-out", metavar="DIR", help="work folder; runs go on where they were (default: new)")


@pytest.fixture(scope="session")
def flmm_preserve(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Verdict]:
    """Return ``flmm_preserve(model, tasks, model_args="", **plan)``: run both models, return the `Verdict`.

    ``plan``: the fields of `flmm_plugin.adapters.preservation.proof.Plan`.
    """
    out = Path(request.config.getoption("--flmm-preserve-out") or tmp_path_factory.mktemp("flmm-preserve"))
    return lambda model, tasks, model_args="", **plan: _verdict(model, tasks, model_args, out, **plan)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--flmm-preserve``: add one case for the verdict and one per check, before the project's own."""
    model = config.getoption("--flmm-preserve")
    if not model:
        return
    from flmm_plugin.adapters.preservation.verdict import CHECKS

    @functools.cache  # the first case that runs makes the verdict for all
    def verdict() -> Verdict:
        return _verdict(
            model, config.getoption("--flmm-preserve-tasks"), config.getoption("--flmm-preserve-args"),
            Path(config.getoption("--flmm-preserve-out") or mkdtemp(prefix="flmm-preserve-")),
            limit=config.getoption("--flmm-preserve-limit"), device=config.getoption("--flmm-preserve-device"),
        )  # fmt: skip

    names = ("verdict", *CHECKS)
    items[:0] = [
        PreserveCase.from_parent(session, name=name, nodeid=f"flmm-preserve::{name}", verdict=verdict) for name in names
    ]


class PreserveCase(pytest.Item):
    """One check of the verdict, or the verdict itself."""

    def __init__(self, *, verdict: Callable[[], Verdict], **options: Any) -> None:
        super().__init__(**options)
        self._verdict = verdict

    def runtest(self) -> None:
        """Fail if the check differs, with the first difference as the message."""
        from flmm_plugin.adapters.preservation import report

        verdict = self._verdict()
        if self.name == "verdict":
            if not verdict.unchanged:
                raise ChatChanged(report.as_text(verdict))
            return
        check = next(check for check in verdict.blamed if check.name == self.name)
        if not check.compared:
            pytest.skip(check.detail or "these tasks have nothing of the kind to compare")
        if check.differing and not verdict.unchanged:
            raise ChatChanged(report.side_by_side(check))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show a difference as it is, without a traceback of this file."""
        if isinstance(excinfo.value, ChatChanged):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[str, None, str]:
        """Name the case in pytest's list."""
        return "flmm-preserve", None, f"flmm preserve: {self.name}"


class ChatChanged(AssertionError):
    """A check differs; the message shows the first difference."""


def _verdict(model: str, tasks: str, model_args: str, out: Path, **plan: Any) -> Verdict:
    from flmm_plugin.adapters.preservation import proof
    from flmm_plugin.options import arguments_of

    names = tuple(name for name in tasks.split(",") if name)
    return proof.prove(proof.Plan(model=model, tasks=names, out=out, model_args=arguments_of(model_args), **plan))
