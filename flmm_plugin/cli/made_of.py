"""Set results of other weights, heads, data or code aside, so that they are not taken for new ones."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from flmm_plugin import files

_RECORD = "made_of.json"
# Folders of this package whose code changes no result.
_NO_RESULT = ("cli", "reports", "training")


def made_of(model: str, arguments: str) -> dict[str, str]:
    """Name what decides a model's results by content: weights, heads and SAM, versions, this package's code.

    Args:
        model: Name of a model, as lmms-eval's ``--model`` takes it.
        arguments: Its arguments in one text, ``name=value,name=value``.
    """
    from flmm_plugin.adapters.answering.defaults import DEFAULTS
    from flmm_plugin.adapters.answering.identity import code_digest
    from flmm_plugin.content_hashes import argument_digests, versions

    pretrained = DEFAULTS[model].pretrained if model in DEFAULTS else ""
    given = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    installed = versions(("lmms-eval", "torch", "transformers", "pillow"))
    return {**installed, "code": code_digest(_NO_RESULT), **argument_digests({"pretrained": pretrained, **given})}


def set_aside(folder: Path, made: Mapping[str, str]) -> None:
    """Rename a folder whose results or answers are of other things, and note what the new ones will be made of.

    Args:
        folder: Of one model's results, with what else is kept for it.
        made: By name. What only one side knows (data that came later, a model that was fetched) is no difference.

    Raises:
        OutputFailed: It cannot be renamed or written.
    """
    record = folder / _RECORD
    try:
        before = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = {"their origin": None}  # of an earlier version of this package, or put there by hand
    changed = sorted(name for name, value in before.items() if value is None or made.get(name, value) != value)
    if changed and any(any(folder.glob(kept)) for kept in ("**/*_results.json", "cache/**/*.*")):
        aside = folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%dT%H%M%S')}")
        print(f"  changed: {', '.join(changed)}; the results so far are kept in {aside}", file=sys.stderr)
        with files.naming(aside):
            folder.rename(aside)
    files.write(record, json.dumps(made, indent=1, sort_keys=True))
