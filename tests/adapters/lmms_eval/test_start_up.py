"""The command's quick index finds the same tasks with the same content as lmms-eval does by itself."""

from __future__ import annotations

from pathlib import Path

import lmms_eval.tasks
import pytest
import yaml
from lmms_eval import utils

from flmm_plugin.adapters.lmms_eval import start_up
from flmm_plugin.tasks.task_files import TASKS_FOLDER

STOCK = Path(lmms_eval.tasks.__file__).parent


def plain(value: object) -> object:
    """A configuration without the identity of its nodes: what ``!function`` names, as text."""
    if isinstance(value, yaml.Node):
        return ["!function", value.value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def by_both(file: Path) -> tuple[object, object]:
    original = getattr(utils.load_yaml_config, "__wrapped__", utils.load_yaml_config)
    fast = start_up._load_yaml_config(original, str(file), mode="simple")
    return plain(fast), plain(original(yaml_path=str(file), mode="simple"))


def test_task_files_are_read_as_lmms_eval_reads_them() -> None:
    sample = [*sorted(STOCK.rglob("*.yaml"))[::25], *sorted(TASKS_FOLDER.rglob("*.yaml"))[::8]]
    assert len(sample) > 50
    for file in sample:
        fast, slow = by_both(file)
        assert fast == slow, file


@pytest.mark.slow
def test_every_task_file_is_read_as_lmms_eval_reads_it() -> None:
    for file in (*STOCK.rglob("*.yaml"), *TASKS_FOLDER.rglob("*.yaml")):
        fast, slow = by_both(file)
        assert fast == slow, file


def test_a_broken_file_is_refused_in_lmms_evals_own_words(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("task: [")
    with pytest.raises(yaml.YAMLError) as fast:
        start_up._load_yaml_config(utils.load_yaml_config, str(tmp_path / "a.yaml"), mode="simple")
    with pytest.raises(yaml.YAMLError) as slow:
        utils.load_yaml_config(str(tmp_path / "a.yaml"), mode="simple")
    assert str(fast.value) == str(slow.value)
