"""Check what an evaluation needs before anything is loaded: names, options, folders, the checkpoint, the data.

All that is missing is said at once, with the commands that bring it. The embedded model is ready in any folder: a
benchmark of which nothing is there is read from its own synthetic scenes (`flmm_plugin.tiny.panel`), which is said, and
kept in the result file as the task's metadata.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.adapters.answering.arguments import ModelArguments, checked_batch_size
from flmm_plugin.adapters.answering.chat import given_by_hand
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.answering.needs import model_needs, needs_heads
from flmm_plugin.bundled import SCENES_ROOT, is_model
from flmm_plugin.data.root import DATA_ROOT_VARIABLE, data_root
from flmm_plugin.devices import checked_device
from flmm_plugin.errors import FlmmError, UnknownArgument
from flmm_plugin.files import cache_folder, check_file_place, make_folder
from flmm_plugin.hub_files import hub_answers as _hub_answers
from flmm_plugin.needs import NotReady, provide
from flmm_plugin.options import none_if_said
from flmm_plugin.suggestions import did_you_mean
from flmm_plugin.tasks.benchmarks import benchmarks_of_folder
from flmm_plugin.tasks.task_files import TASKS_FOLDER

_REPOS_OF_SCENES = ("lmms-lab-encoder/MME", "lmms-lab-encoder/POPE")


@dataclass(frozen=True)
class _Absent:
    """Data that is not here.

    Attributes:
        fix: What is missing and how to get it; None where lmms-eval will fetch it.
        in_the_scenes: Whether the synthetic scenes can stand in: nothing of the benchmark is here or was named.
    """

    fix: str | None
    in_the_scenes: bool


@dataclass(frozen=True)
class Asked:
    """Hold what somebody asked lmms-eval for.

    Attributes:
        model: Name, a key of `DEFAULTS`.
        model_args: Values of ``--model_args`` by name.
        tasks: Names of tasks and groups.
        manager: lmms-eval's `TaskManager`, whose index of tasks is already made.
        device, batch_size, num_fewshot, use_cache, gen_kwargs: As of lmms-eval.
        output_path: Where results go, None for nowhere.
    """

    model: str
    model_args: Mapping[str, Any]
    tasks: Sequence[str]
    manager: Any
    device: str | None = None
    batch_size: Any = 1
    num_fewshot: int | None = None
    use_cache: str | None = None
    gen_kwargs: Mapping[str, Any] | None = None
    output_path: str | None = None


def check(asked: Asked) -> dict[str, dict[str, Any]]:
    """Look at everything; nothing is loaded or fetched.

    Returns:
        For each task that reads the synthetic scenes instead of its own data: what to change of its configuration.

    Raises:
        UnknownArgument: A name, device or option that does not exist, or few-shot.
        OutputFailed: A place that cannot be written.
        NotReady: Checkpoint, heads or data are not here.
    """
    arguments = check_model(asked)
    tasks = dict(leaves(asked.manager, asked.tasks))
    if asked.num_fewshot:
        mine = [name for name, (folder, _) in tasks.items() if folder is not None]
        if mine:
            raise UnknownArgument(
                f"--num_fewshot {asked.num_fewshot}: {', '.join(mine[:3])}{' ...' if len(mine) > 3 else ''} have no "
                "few-shot: they ask about one picture at a time; leave it out or run them apart"
            )
    given_by_hand(asked.gen_kwargs or {})
    if asked.output_path:
        make_folder(Path(asked.output_path))
    if asked.use_cache:
        cache = Path(asked.use_cache)
        check_file_place(cache) if cache.suffix == ".db" else make_folder(cache)
    grounds = any(
        needs_heads(config.get("generation_kwargs") or {}, arguments.visual_cot) for _, config in tasks.values()
    )
    needed = model_needs(arguments, grounds=grounds)
    missing: list[tuple[str, str]] = []
    changes: dict[str, dict[str, Any]] = {}
    absent: dict[str, list[str]] = {}
    for name, (folder, config) in tasks.items():
        found = _absent(folder, config)
        if found is None:
            continue
        if is_model(arguments.pretrained) and found.in_the_scenes:
            changes[name] = _on_the_scenes(name, config)
        elif found.fix is not None and (folder is None or not _reads(name)):
            absent.setdefault(found.fix, []).append(name)
    for fix, names in absent.items():
        missing.append((", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""), fix))
    if missing:
        missing = [(need.what, need.command) for need in needed if not need.here] + missing
        width = max(len(what) for what, _ in missing)
        listed = "\n".join(f"  {what.ljust(width)}  {fix}" for what, fix in missing)
        raise NotReady(
            f"nothing was loaded, because this is missing (files that lie elsewhere: {DATA_ROOT_VARIABLE}=<their "
            f"folder>):\n{listed}"
        )
    provide(needed, fetch=arguments.fetch, folder=cache_folder())
    return changes


def check_model(asked: Asked) -> ModelArguments:
    """Read a model's name and arguments.

    Raises:
        UnknownArgument: One that does not exist.
    """
    if asked.model not in DEFAULTS:
        raise UnknownArgument(
            f"there is no model {asked.model!r}{did_you_mean(asked.model, DEFAULTS) or '.'} "
            f"There are: {', '.join(DEFAULTS)} (flmm list)"
        )
    arguments = ModelArguments.read(DEFAULTS[asked.model], asked.model_args)
    checked_batch_size(asked.model_args.get("batch_size", asked.batch_size or 1))
    checked_device(arguments.device, "--model_args device=")
    checked_device(none_if_said(asked.device), "--device")
    if arguments.options.dtype != "auto":
        from flmm_plugin.backbones.loading import torch_dtype

        torch_dtype(arguments.options.dtype)
    if arguments.heads is not None:
        from flmm_plugin.heads.training_free import method_of

        method_of(arguments.heads)
    return arguments


def leaves(manager: Any, names: Iterable[Any]) -> Iterator[tuple[str, tuple[str | None, dict[str, Any]]]]:
    """Walk through groups and tags.

    Args:
        manager: lmms-eval's `TaskManager`, whose index of tasks is already made.
        names: Of tasks and groups; what is no name is passed over.

    Yields:
        Each task once by its name: the folder of this package's tasks that it is in (None for others) and its YAML.
    """
    from lmms_eval.utils import load_yaml_config

    seen: set[str] = set()

    def walk(name: Any) -> Iterator[tuple[str, tuple[str | None, dict[str, Any]]]]:
        if isinstance(name, dict):
            name = name.get("task")
        if isinstance(name, list):
            for one in name:
                yield from walk(one)
        if not isinstance(name, str) or name in seen or name not in manager.task_index:
            return
        seen.add(name)
        entry = manager.task_index[name]
        children, path = entry.get("task", -1), entry["yaml_path"]
        if children != -1:
            yield from walk(children)
            return
        config = load_yaml_config(path, mode="simple")
        if entry["type"] == "group":
            yield from walk(config["task"])
        else:
            ours = Path(path).is_relative_to(TASKS_FOLDER)
            yield name, (Path(path).parent.name if ours else None, config)

    for name in names:
        yield from walk(name)


def _absent(folder: str | None, config: Mapping[str, Any]) -> _Absent | None:
    """Find what of a task's data is not here; None if all is, or if nobody here knows."""
    options = config.get("dataset_kwargs") or {}
    if folder == "tiny" or options.get("root") == SCENES_ROOT:
        return None
    if config.get("dataset_path"):
        return _absent_of_hub(str(config["dataset_path"]), options)
    benchmarks = benchmarks_of_folder(str(folder), [str(options.get("name"))])
    if not benchmarks:
        return None
    benchmark = benchmarks[0]
    name = benchmark.name
    root = data_root(options.get("root"))
    wanted = {str(config.get("test_split")), str(options.get("name"))}
    parts = [part for part in benchmark.parts_of(wanted) if not part.optional]
    gone = [part for part in parts if part.found(root) is None]
    if not gone:
        return None
    what = ", ".join(part.what for part in gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
    fetched = any(part.source for part in gone)
    fixes = [f"flmm data download {name} --root {root}"] if fetched else []
    fixes += [f"{part.what}: {part.how}" for part in gone if part.source is None]
    fix = f"{what} not under {root}: {'; '.join(fixes)}"
    begun = len(gone) < len(parts) or "root" in options or bool(os.environ.get(DATA_ROOT_VARIABLE))
    return _Absent(fix, not begun and not wanted.isdisjoint(benchmark.scenes))


def _absent_of_hub(repo: str, options: Mapping[str, Any]) -> _Absent | None:
    """The same of a data set that lmms-eval fetches."""
    if Path(repo).exists() or repo.count("/") != 1 or _cached("datasets", repo):
        return None
    fix = None
    if not _hub_answers():
        fix = f"{repo} is not here and the hub does not answer: hf download --repo-type dataset {repo}"
    elif options.get("token") is True:
        from huggingface_hub import get_token

        if get_token() is None:
            fix = f"{repo} is not here, and it is asked for with a login: hf auth login, or HF_TOKEN=<token>"
    return _Absent(fix, repo in _REPOS_OF_SCENES)


def _reads(name: str) -> bool:
    """Have the task's own reader say the last word: it may know a place that no list has."""
    from flmm_plugin.tasks.standalone import StandaloneTask

    try:
        docs = StandaloneTask(name).docs
        return len(docs) == 0 or Path(str(docs[0]["image_path"])).is_file()
    except (FlmmError, OSError, KeyError):
        return False


def _on_the_scenes(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Make the changes of a task's configuration with which it reads the synthetic scenes and says so."""
    options = dict(config.get("dataset_kwargs") or {})
    shown: dict[str, Any] = {
        "task_alias": f"{name} (world of shapes)",
        "metadata": {"version": 0.0, "data": "the embedded model's own world of shapes, not the benchmark"},
    }
    if not config.get("dataset_path"):
        return {**shown, "dataset_kwargs": {**options, "root": SCENES_ROOT}}
    from flmm_plugin.tasks.tiny.task import WorldTask

    repo = config["dataset_path"]
    return {**shown, "class": WorldTask, "dataset_path": SCENES_ROOT, "dataset_kwargs": {"repo": repo}}


def _cached(kind: str, repo: str) -> bool:
    """Look for a repository in one of the hub's caches, as files or (data sets) as they were read."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}" / "snapshots"
    if snapshots.is_dir() and any(snapshots.iterdir()):
        return True
    if kind != "datasets":
        return False
    import datasets

    read = Path(os.environ.get("LMMS_EVAL_DATASETS_CACHE") or datasets.config.HF_DATASETS_CACHE)
    wanted = _letters(repo)
    return read.is_dir() and any(_letters(entry.name) == wanted for entry in read.iterdir())


def _letters(name: str) -> str:
    """Drop what `datasets` changes in a name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
