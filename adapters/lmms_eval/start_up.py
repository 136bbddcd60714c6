"""Index lmms-eval's thousands of task files by libyaml, in an eighth of the time that PyYAML's own parser takes.

The index is the same: it needs the plain values of a file, which both read alike. Of a task that runs, the file is read
again by lmms-eval itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from flmm_plugin.adapters.patching import AfterImport, wrap_once


class _Index(getattr(yaml, "CFullLoader", yaml.FullLoader)):  # type: ignore[misc]
    """The loader of ``yaml.full_load``, by libyaml where PyYAML was built with it."""


# As lmms-eval does for its index: what a file names with !function is not imported.
_Index.add_constructor("!function", lambda loader, node: node)


def prepare() -> None:
    """Arrange this for the lmms-eval of this process, which is not imported yet."""
    AfterImport.place("lmms_eval.utils", _index_fast)


def _index_fast(utils: ModuleType) -> None:
    if hasattr(utils, "load_yaml_config"):
        wrap_once(utils, "load_yaml_config", _load_yaml_config)


def _load_yaml_config(
    original: Callable[..., Any],
    yaml_path: str | None = None,
    yaml_config: dict[str, Any] | None = None,
    yaml_dir: str | None = None,
    mode: str = "full",
) -> Any:
    """Read a file for the index by libyaml; one that it refuses is left to lmms-eval, whose message counts."""
    if mode == "simple" and yaml_config is None and yaml_path is not None:
        try:
            yaml_config = yaml.load(Path(yaml_path).read_bytes(), _Index)
        except yaml.YAMLError:
            yaml_config = None
    return original(yaml_path=yaml_path, yaml_config=yaml_config, yaml_dir=yaml_dir, mode=mode)
