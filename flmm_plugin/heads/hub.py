"""Push heads to a hub repository and pull them: one safetensors file, and a model card.

Only `huggingface_hub`'s client talks to the hub; who may is its business (``hf auth login`` or ``HF_TOKEN``).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from flmm_plugin import files
from flmm_plugin.errors import BadCheckpoint, DataNotFound
from flmm_plugin.heads.checkpoint import heads_file, read_manifest, verify_tensors, write_tensors
from flmm_plugin.heads.manifest import HeadsManifest
from flmm_plugin.heads.weights import first_lines
from flmm_plugin.redaction import public

FILE = "heads.safetensors"
CARD = "README.md"

#: Tag of a repository with heads, by which the hub finds them.
TAG = "f-lmm"


class Hub(Protocol):
    """The part of `huggingface_hub.HfApi` that is used."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make the repository; gives its address."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Upload all files of a folder as one commit."""

    def hf_hub_download(self, repo_id: str, filename: str, *, revision: str | None) -> str:
        """Download one file; gives where it lies."""


@dataclass(frozen=True)
class Results:
    """Scores of one run of lmms-eval: ``scores[task][metric]``, and where they are from."""

    source: str
    model: str
    model_args: str
    scores: Mapping[str, Mapping[str, float]]
    samples: Mapping[str, int]
    versions: Mapping[str, str]


def push_heads(
    path: str | Path,
    repository: str,
    *,
    results: Results | None = None,
    private: bool = False,
    message: str | None = None,
    licence: str = "other",
    hub: Hub | None = None,
) -> str:
    """Upload heads and their model card as one commit.

    Args:
        path: Written by `save_heads`; its hash is checked first.
        repository: ``owner/name``; made if it is not there.
        results: Scores of a run with these heads, for the card.
        private: If the repository is made now.
        message: Commit message; None: it names the backbone.
        licence: As the hub names it.
        hub: Client to use instead of `huggingface_hub.HfApi`.

    Returns:
        Address of the repository.

    Raises:
        BadCheckpoint: Not a heads file, or a damaged one.
        DataNotFound: The hub refused, or cannot be reached.
        OutputFailed: There is no room to put them together.
    """
    path = heads_file(path)
    state, stored = verify_tensors(path), read_manifest(path)
    manifest = stored.without_places()
    client = hub if hub is not None else _client()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / FILE
        if manifest == stored:
            with files.naming(place):
                _link_or_copy(path.resolve(), place)
        else:  # written before paths were left out, or by hand
            write_tensors(place, state, manifest)
        files.write(Path(folder) / CARD, model_card(manifest, repository, results, licence=licence))
        try:
            address = client.create_repo(repository, private=private, exist_ok=True)
            client.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=message or f"Heads for {manifest.backbone}"
            )
        except Exception as exc:
            raise _refused(f"push to {repository}", exc) from exc
    return str(address)


def pull_heads(
    repository: str, out: str | Path, *, revision: str | None = None, hub: Hub | None = None
) -> HeadsManifest:
    """Download heads; they appear at ``out`` only after manifest and hash were checked.

    Args:
        repository: The repository's ``owner/name`` on the hub.
        out: Heads file to write, complete or not at all.
        revision: Branch, tag or commit; None: the newest.
        hub: Client to use instead of `huggingface_hub.HfApi`.

    Raises:
        BadCheckpoint: What was downloaded is not a whole heads file.
        DataNotFound: No such repository or file, or the hub cannot be reached.
    """
    client = hub if hub is not None else _client()
    try:
        downloaded = Path(client.hf_hub_download(repository, FILE, revision=revision))
    except Exception as exc:
        raise _refused(f"pull {FILE} from {repository}", exc) from exc
    manifest, state = read_manifest(downloaded), verify_tensors(downloaded)
    origin = {"source": hub_address(repository)}
    if downloaded.parent.parent.name == "snapshots":  # of the hub's cache, where a folder is named by its commit
        origin["source_commit"] = downloaded.parent.name
    manifest = replace(manifest, notes={**manifest.notes, **origin})
    write_tensors(Path(out), state, manifest)
    return manifest


def hub_address(repository: str) -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repository}"


def shared_heads(backbone: str, *, most: int = 3) -> list[str]:
    """Name hub repositories that say they hold heads for a model; nothing vouches for them.

    Args:
        backbone: Hub id of the model.
        most: Length limit of the list.

    Returns:
        ``owner/name`` of each; empty where the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    try:
        found = HfApi(library_name="flmm-plugin").list_models(filter=[TAG, f"base_model:{backbone}"], limit=most)
        return [one.id for one in found]
    except Exception:  # it is a hint, and the hub need not be there
        return []


def _link_or_copy(path: Path, place: Path) -> None:
    try:
        place.hardlink_to(path)
    except OSError:  # another file system
        shutil.copyfile(path, place)


def find_results(path: str | Path) -> Results:
    """Read a result file of lmms-eval; of a folder, the newest one in it.

    Raises:
        DataNotFound: There is none, or it holds no scores.
    """
    path = Path(path)
    if path.is_dir():
        written = sorted(path.rglob("*_results.json"), key=lambda one: one.stat().st_mtime)
        if not written:
            raise DataNotFound(f"no *_results.json under {path}: run lmms_eval with --output_path {path}")
        path = written[-1]
    if not path.is_file():
        raise DataNotFound(f"there is no result file {path}; give the *_results.json that lmms_eval wrote")
    content = files.read_json(path, DataNotFound)
    try:
        return _results(content, path.name)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        raise DataNotFound(f"{path} is no result file of lmms-eval ({type(exc).__name__}: {exc})") from exc


def _results(content: Mapping[str, Any], name: str) -> Results:
    scores = {str(task): _scores(values) for task, values in content["results"].items()}
    config = content.get("config") or {}
    samples = {
        str(task): int(count["effective"] if isinstance(count, Mapping) else count)
        for task, count in (content.get("n-samples") or {}).items()
    }
    names = {"transformers_version": "transformers", "lmms_eval_version": "lmms-eval", "git_hash": "commit"}
    versions = {shown: str(content[key]) for key, shown in names.items() if content.get(key)}
    return Results(
        name,
        str(config.get("model", "")),
        str(public(config.get("model_args") or "")),
        {task: values for task, values in scores.items() if values},
        samples,
        versions,
    )


def model_card(
    manifest: HeadsManifest, repository: str, results: Results | None = None, *, licence: str = "other"
) -> str:
    """Write the repository's README: metadata that the hub reads, what the heads are for, how to use them, scores."""
    manifest = manifest.without_places()
    metadata = {
        "license": licence,
        "library_name": "flmm-plugin",
        "base_model": manifest.backbone,
        "pipeline_tag": "image-segmentation",
        "tags": ["grounding", "referring-expression-segmentation", TAG],
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in metadata.items()), "---", ""]
    lines += [
        f"# Grounding heads for {manifest.backbone}",
        "",
        f"Masks for words, read from the attention of the frozen `{manifest.backbone}` (F-LMM, arXiv 2406.05821). The "
        "model itself is not in this repository and stays as it is: with these heads or without, it answers the same.",
        "",
        "```",
        f'flmm ground picture.jpg "the man on the left" --model {manifest.backbone} --heads {repository}',
        "```",
        "",
        "| | |",
        "|---|---|",
        *(f"| {_cell(name)} | {_cell(value)} |" for name, value in _facts(manifest).items()),
        "",
        *_score_lines(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _facts(manifest: HeadsManifest) -> dict[str, Any]:
    encoder = "in the file" if manifest.stores_image_encoder else "from Meta's own file, `--sam`"
    refiner = "none" if manifest.sam is None else manifest.sam if isinstance(manifest.sam, str) else "small"
    facts = {
        "backbone": f"{manifest.backbone}" + (f" at {manifest.revision}" if manifest.revision else ""),
        "attention maps": f"{manifest.attention_maps} ({manifest.layers} layers x {manifest.heads} heads"
        + (f" x {manifest.maps_per_image} views)" if manifest.maps_per_image > 1 else ")"),
        "SAM": refiner if manifest.sam is None else f"{refiner}, image encoder {encoder}",
        "keyword selector": "yes" if manifest.keyword_selector else "no",
        "trained on": manifest.data,
        "prompt": manifest.prompt,
        "preprocessing": manifest.preprocessing,
        "placement of masks": manifest.placement,
        "stored as": manifest.storage,
        "made by": manifest.created_by,
        "sha256 of tensors": manifest.sha256,
    }
    return {name: value for name, value in facts.items() if value}


def _score_lines(results: Results | None) -> list[str]:
    if results is None or not results.scores:
        return ["No scores were given when these heads were pushed."]
    lines = ["## Scores", "", "| task | metric | value | documents |", "|---|---|---|---|"]
    for task, metrics in results.scores.items():
        for metric, value in metrics.items():
            shown = results.samples.get(task, "")
            lines.append(f"| {_cell(task)} | {_cell(metric)} | {value:.6g} | {shown} |")
    about = f"From `{results.source}` of lmms-eval: `--model {results.model} --model_args {results.model_args}`"
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return [*lines, "", about + (f"; {versions}." if versions else ".")]


def _scores(values: Mapping[str, Any]) -> dict[str, float]:
    """Metric values alone: lmms-eval writes ``"metric,filter"`` keys beside aliases and standard errors."""
    return {
        key.partition(",")[0]: float(value)
        for key, value in values.items()
        if "," in key and "_stderr" not in key and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _client() -> Hub:
    from huggingface_hub import HfApi

    client: Hub = HfApi(library_name="flmm-plugin")
    return client


def _refused(what: str, exc: Exception) -> DataNotFound | BadCheckpoint:
    return DataNotFound(
        f"cannot {what}: {type(exc).__name__}: {first_lines(exc)}. Check the name and the connection (HF_HUB_OFFLINE "
        "unset), and log in with: hf auth login"
    )
