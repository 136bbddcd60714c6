"""Check what an evaluation needs before anything is loaded: names, options, folders, the checkpoint, the data.

What is missing is fetched, or said at once with the commands that bring it. The embedded model is ready in any folder:
a benchmark of which nothing is there is read from its own synthetic scenes (`flmm_plugin.tiny.panel`), which is said,
and kept in the result file as the task's metadata.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_plugin.adapters.answering.arguments import ModelArguments, checked_batch_size
from flmm_plugin.adapters.answering.chat import given_by_hand
from flmm_plugin.adapters.answering.defaults import DEFAULTS
from flmm_plugin.adapters.answering.needs import model_needs, needs_heads, reads
from flmm_plugin.bundled import SCENES_ROOT, is_model
from flmm_plugin.data.root import DATA_ROOT_VARIABLE
from flmm_plugin.devices import checked_device
from flmm_plugin.errors import DataNotFound, UnknownArgument
from flmm_plugin.files import check_file_place, make_folder
from flmm_plugin.hub_files import hub_answers as _hub_answers
from flmm_plugin.hub_files import problem_of_hub
from flmm_plugin.needs import Need, NotReady, missing, offline, provide
from flmm_plugin.options import none_if_said
from flmm_plugin.suggestions import did_you_mean
from flmm_plugin.tasks.data_needs import Use, needs_of, use_of
from flmm_plugin.tasks.task_files import is_ours

__all__ = ["Asked", "NotReady", "Survey", "check", "check_model", "leaves", "survey"]

_REPOS_OF_SCENES = ("lmms-lab-encoder/MME", "lmms-lab-encoder/POPE")
#: What a task may say about its data set, if its data is fetched here; videos and the like are lmms-eval's alone.
_PLAIN_OPTIONS = {"token", "revision", "trust_remote_code"}
_SECONDS = 10  # that the hub has to answer


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
        root: Data root for tasks that name none; None means ``FLMM_DATA``, or ``data``.
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
    root: Path | None = None


@dataclass(frozen=True)
class Survey:
    """Hold what a run needs.

    Attributes:
        arguments: Arguments of the model, read and checked.
        tasks: Single tasks by name: the folder of this package's tasks that each is in, None for others, and its YAML.
        grounds: Names of the tasks that need heads.
        needs: Everything that is needed, whether here or not.
        changes: By task, what to change of its YAML so that it reads the synthetic scenes, or needs no login.
    """

    arguments: ModelArguments
    tasks: Mapping[str, tuple[str | None, dict[str, Any]]]
    grounds: tuple[str, ...]
    needs: list[Need]
    changes: dict[str, dict[str, Any]]

    @property
    def on_scenes(self) -> tuple[str, ...]:
        """Names of the tasks that read the synthetic scenes in place of their own data."""
        return tuple(name for name, change in self.changes.items() if "metadata" in change)


def check(asked: Asked) -> dict[str, dict[str, Any]]:
    """Look at everything, and fetch what is missing; nothing is loaded.

    Returns:
        By task, what to change of its configuration so that it reads the synthetic scenes, or needs no login.

    Raises:
        UnknownArgument: A name, device or option that does not exist, or few-shot.
        OutputFailed: A place that cannot be written.
        NotReady: Checkpoint, heads or data are not here, and may not or cannot be fetched.
        DataNotFound, BadAnnotation, BadCheckpoint: A fetch failed.
    """
    found = survey(asked)
    if asked.num_fewshot:
        mine = [name for name, (folder, _) in found.tasks.items() if folder is not None]
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
    fetch = found.arguments.fetch and not is_model(found.arguments.pretrained)
    provide(found.needs, fetch=fetch, again=lambda: survey(asked).needs)
    return found.changes


def survey(asked: Asked) -> Survey:
    """Find what a run needs; nothing is loaded, fetched or written, only the hub is asked for sizes.

    Raises:
        UnknownArgument, HeadsMismatch: A name, device or option that does not exist or contradicts another.
    """
    arguments = check_model(asked)
    tasks = dict(leaves(asked.manager, asked.tasks))
    grounds = tuple(
        name
        for name, (_, config) in tasks.items()
        if needs_heads(config.get("generation_kwargs") or {}, arguments.visual_cot)
    )
    embedded = is_model(arguments.pretrained)
    changes: dict[str, dict[str, Any]] = {}
    uses: list[Use] = []
    sets: dict[tuple[str, str | None], list[str]] = {}
    for name, (folder, config) in tasks.items():
        if folder == "tiny":
            continue  # these tasks read the synthetic scenes with every model
        repo = str(config.get("dataset_path") or "")
        use = use_of(name, folder, config, asked.root) if folder is not None else None
        if repo and repo != SCENES_ROOT:
            if embedded and repo in _REPOS_OF_SCENES and not _cached(repo):
                changes[name] = _on_the_scenes(name, config)
            else:
                sets.setdefault((repo, config.get("dataset_name")), []).append(name)
                if _asks_for_a_login_in_vain(config):
                    changes[name] = {"dataset_kwargs": {**config["dataset_kwargs"], "token": False}}
        elif use is not None:
            needed = needs_of([use])
            if embedded and _has_nothing(use, needed, config):
                changes[name] = _on_the_scenes(name, config)
            elif not missing(needed) or not reads(name):
                uses.append(use)
    needs = model_needs(arguments, grounds=bool(grounds)) + needs_of(uses)
    needs += [_set_need(repo, part, users, tasks[users[0]][1]) for (repo, part), users in sets.items()]
    return Survey(arguments, tasks, grounds, needs, changes)


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
            yield name, (Path(path).parent.name if is_ours(path) else None, config)

    for name in names:
        yield from walk(name)


def _has_nothing(use: Use, needed: Sequence[Need], config: Mapping[str, Any]) -> bool:
    """Tell whether the synthetic scenes stand in for a split: nothing of it is here, and nobody named a folder."""
    named = "root" in (config.get("dataset_kwargs") or {}) or bool(os.environ.get(DATA_ROOT_VARIABLE))
    begun = named or any(part.found(use.root) is not None for part in use.benchmark.parts_of([use.split]))
    return bool(missing(needed)) and not begun and use.split in use.benchmark.scenes


def _set_need(repo: str, part: str | None, users: Sequence[str], config: Mapping[str, Any]) -> Need:
    """Say whether a data set that lmms-eval fetches is here, and how much a fetch would bring.

    Args:
        repo: Folder, or name on the hub.
        part: Name of its configuration, None for the only one.
        users: Names of the tasks that read it.
        config: YAML of the first of them.
    """
    what, command = repo + (f" ({part})" if part else ""), f"hf download --repo-type dataset {repo}"
    named = tuple(users)
    if repo.count("/") != 1 or _cached(repo):
        return Need("data", what, here=True, users=named)
    options = dict(config.get("dataset_kwargs") or {})
    if _asks_for_a_login_in_vain(config):
        options["token"] = False
    if offline():
        return Need("data", what, here=False, command=command, bring=_fetch_set(repo, part, options), users=named)
    if not _hub_answers():
        return Need("data", f"{what}: the hub does not answer", here=False, command=command, users=named)
    from huggingface_hub import HfApi, get_token

    try:
        info: Any = HfApi(library_name="flmm-plugin").dataset_info(repo, files_metadata=True, timeout=_SECONDS)
        if info.gated and get_token() is None:
            login = "its terms must be accepted on its page: hf auth login, or HF_TOKEN=<token>"
            return Need("data", what, here=False, command=login, users=named)
    except Exception as exc:  # no network behind a proxy, no such data set, no right to it
        return Need("data", f"{what}: {problem_of_hub(exc)}", here=False, command=command, users=named)
    size, space = _sizes(info, part)
    plain = set(options) <= _PLAIN_OPTIONS
    return Need(
        "data", what, False, size, space, f"https://huggingface.co/datasets/{repo}",
        str(getattr(info.card_data, "license", None) or ""), command,
        _fetch_set(repo, part, options) if plain else lambda: None, named, _sets_folder(),
    )  # fmt: skip


def _asks_for_a_login_in_vain(config: Mapping[str, Any]) -> bool:
    """Tell whether a task asks for its data with a login where nobody is logged in; public data comes without."""
    from huggingface_hub import get_token

    return (config.get("dataset_kwargs") or {}).get("token") is True and get_token() is None


def _sizes(info: Any, part: str | None) -> tuple[int | None, int | None]:
    """Return the bytes of a data set's download and those on the disk in the end, as its page states them."""
    stated = (info.card_data.to_dict() if info.card_data is not None else {}).get("dataset_info") or []
    for one in [stated] if isinstance(stated, dict) else stated:
        if part in (None, one.get("config_name")) and isinstance(one.get("download_size"), int):
            size = int(one["download_size"])
            return size, size + int(one.get("dataset_size") or size)
    sizes = [one.size for one in info.siblings or ()]
    known = None if None in sizes or (part is not None and not stated) else sum(sizes)
    return known, None if known is None else 2 * known


def _fetch_set(repo: str, part: str | None, options: Mapping[str, Any]) -> Callable[[], object]:
    """Return what fetches a data set as lmms-eval does, which then finds it in the cache."""

    def bring() -> None:
        import datasets

        place = os.environ.get("LMMS_EVAL_DATASETS_CACHE")
        try:
            datasets.load_dataset(path=repo, name=part, cache_dir=place, **options)
        except Exception as exc:
            raise DataNotFound(
                f"cannot fetch {repo} ({type(exc).__name__}: {' '.join(str(exc).split())[:300]}); what has arrived is "
                "kept, so the same command goes on. For a data set with terms: hf auth login, and accept them there"
            ) from exc

    return bring


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


def _cached(repo: str) -> bool:
    """Look for a data set: a folder, or one in the hub's cache, as files or as they were read."""
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots"
    if Path(repo).exists() or (snapshots.is_dir() and any(snapshots.iterdir())):
        return True
    read = _sets_folder()
    wanted = _letters(repo)
    return read.is_dir() and any(_letters(entry.name) == wanted for entry in read.iterdir())


def _sets_folder() -> Path:
    import datasets

    return Path(os.environ.get("LMMS_EVAL_DATASETS_CACHE") or datasets.config.HF_DATASETS_CACHE)


def _letters(name: str) -> str:
    """Drop what `datasets` changes in a name."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
