"""``flmm doctor``: what is installed here, and whether it is what the tests ran with."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from typing import Any

import flmm_plugin
from flmm_plugin import bundled
from flmm_plugin.cli.doctor_backbone import Found, findings
from flmm_plugin.cli.model_options import checked_model, refuse_idle
from flmm_plugin.content_hashes import file_digest
from flmm_plugin.devices import checked_device
from flmm_plugin.errors import FlmmError, UnknownArgument
from flmm_plugin.options import LoadOptions

# The versions that the tests run with; a test holds this to constraints.txt, which an installation does not have.
TESTED = {
    "torch": "2.15.0",
    "transformers": "5.23.0",
    "lmms-eval": "0.7.3",
    "segment-anything": "1.0",
    "pycocotools": "2.0.11",
    "numpy": "2.4.6",
    "safetensors": "0.8.0",
}

_NO_BACKBONE = "without --backbone (flmm doctor --backbone NAME --record)"

# What has been run, where; said here so that nobody takes silence for a promise.
VERIFIED = (
    ("CPU, float32 and bfloat16", "tests and demo: the embedded model, tiny random LLaVA-1.5 instances"),
    ("CUDA devices, several devices", "not run by the tests of this version"),
    ("released LMMs and heads", "not run by the tests of this version"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``status``: ``ok``, ``note`` (works, but read it) or ``bad`` (exit status 1)."""

    topic: str
    name: str
    status: str
    detail: str


def add_subcommand(commands: Any) -> None:
    """Add ``doctor`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "doctor",
        help="versions, devices, kernels, embedded weights, lmms-eval, what is verified",
        description="Report on this installation; exit status 1 if something in it is broken.",
    )
    parser.add_argument(
        "--run", dest="try_it", action="store_true", help="also ground a picture with the embedded model"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    model = parser.add_argument_group("one model", "checks of its attention with the versions installed here")
    model.add_argument(
        "--backbone",
        metavar="NAME",
        help="flmm_tiny, a folder or a hub name: was it verified with this transformers, torch and kernel? Where its "
        "weights are on this machine (nothing is downloaded), its attention is checked too",
    )
    texts = LoadOptions.help_texts()
    model.add_argument("--attn-implementation", metavar="KERNEL", help=texts["attn_implementation"])
    model.add_argument("--dtype", help=texts["dtype"])
    model.add_argument("--device", help=texts["device"])
    model.add_argument(
        "--record", action="store_true", help="keep the fingerprint of its attention, if all checks pass, for others"
    )
    parser.set_defaults(run=_doctor)


def examine(try_it: bool = False) -> Iterator[Finding]:
    """All findings, in order. ``try_it``: also run the embedded model."""
    checks: list[tuple[str, Callable[[], Iterator[Found]]]] = [
        ("versions", _versions),
        ("devices", _devices),
        ("kernels", _kernels),
        ("embedded model", _weights),
        ("lmms-eval", _lmms_eval),
    ]
    if try_it:
        checks.append(("trial", _trial))
    for topic, check in checks:
        try:
            yield from (Finding(topic, *found) for found in check())
        except Exception as exc:  # a broken installation is what this command is for: report it and go on
            yield Finding(topic, "check", "bad", f"{type(exc).__name__}: {' '.join(str(exc).split())}")
    yield from (Finding("verified", what, "note", where) for what, where in VERIFIED)


def examine_backbone(args: argparse.Namespace) -> Iterator[Finding]:
    """All findings about one model."""
    yield from (Finding("versions", *found) for found in _versions())
    yield from (Finding("backbone", *found) for found in findings(args))


def _versions() -> Iterator[Found]:
    yield "flmm-plugin", "ok", f"{flmm_plugin.__version__}, Python {platform.python_version()}"
    for name, tested in TESTED.items():
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "bad", f"not installed: pip install {name}=={tested}"
            continue
        same = here.partition("+")[0] == tested
        yield name, "ok" if same else "note", here if same else f"{here}; tests ran with {tested}"


def _devices() -> Iterator[Found]:
    import torch

    if not torch.cuda.is_available():
        yield "cpu", "ok", f"{torch.get_num_threads()} threads; no CUDA device is visible"
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", "ok", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"


def _kernels() -> Iterator[Found]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = sorted(str(name) for name in ALL_ATTENTION_FUNCTIONS.valid_keys())
    if "sdpa" in known:
        yield "attention", "ok", f"captured beside the model's own: {', '.join(known)}"
    else:
        yield "attention", "bad", "transformers has no attention interface to read beside"
    flash = util.find_spec("flash_attn") is not None
    yield "flash_attn", "note", "installed" if flash else "not installed; sdpa is used"


def _weights() -> Iterator[Found]:
    from flmm_plugin.heads import load_heads

    try:
        embedded = bundled.model(bundled.EMBEDDED)
        folder = embedded.checkpoint()
        heads = embedded.heads()
        manifest = load_heads(heads).manifest
    except FlmmError as exc:
        yield "weights", "bad", " ".join(str(exc).split())
        return
    for file in sorted(folder.glob("*.safetensors")):
        megabytes = file.stat().st_size / 1e6
        yield file.name, "ok", f"sha256 of file {file_digest(file)}, {megabytes:.1f} MB"
    size = heads.stat().st_size / 1e6
    yield heads.name, "ok", f"sha256 of tensors {manifest.sha256} verified, {size:.1f} MB"


def _lmms_eval() -> Iterator[Found]:
    from lmms_eval.tasks import TaskManager

    from flmm_plugin.adapters.lmms_eval import task_folder
    from flmm_plugin.adapters.lmms_eval.models import MODELS
    from flmm_plugin.tasks.task_files import TASKS_FOLDER

    points = [point.value for point in metadata.entry_points(group="lmms_eval.models")]
    registered = any(value.startswith("flmm_plugin.") for value in points)
    yield (
        "models",
        "ok" if registered else "bad",
        ", ".join(MODELS)
        if registered
        else "entry point missing: install the package (pip install .), do not only copy it",
    )
    task_folder.install()
    extended = task_folder.extends(TaskManager)
    yield (
        "tasks",
        "ok" if extended else "note",
        "found without a flag" if extended else f"this version needs --include_path {TASKS_FOLDER}",
    )


def _trial() -> Iterator[Found]:
    import numpy as np

    from flmm_plugin.grounded_lmm import GroundedLMM

    lmm = GroundedLMM.from_pretrained("flmm_tiny", device="cpu")
    seal = lmm.seal
    picture = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    question = "what is in the picture ?"
    plain, grounded = lmm.chat(picture, question), lmm.grounded_chat(picture, question)
    same = plain.token_ids == grounded.token_ids
    yield ("chat", "ok" if same else "bad", "same ids with and without grounding" if same else "ids differ: a bug")
    (found,) = lmm.ground(picture, ["the red circle"])
    fits = found.mask.shape == (96, 128)
    yield "ground", "ok" if fits else "bad", f"mask {found.mask.shape} of a picture (96, 128)"
    seal.verify()
    yield "seal", "ok", "no weight of the model changed"


def _doctor(args: argparse.Namespace) -> int:
    if args.backbone is None:
        refuse_idle(args, ("record", "attn-implementation", "dtype", "device"), _NO_BACKBONE)
    else:
        if args.try_it:
            raise UnknownArgument("--run is the embedded model's trial and --backbone another check; give one of them")
        args.backbone = checked_model(args.backbone, "--backbone")
        args.device = checked_device(args.device)
    listed: list[Finding] = []
    topic = ""
    for finding in examine(args.try_it) if args.backbone is None else examine_backbone(args):
        listed.append(finding)
        if args.json:
            continue
        if finding.topic != topic:
            topic = finding.topic
            print(topic)
        print(f"  {finding.status:<4}  {finding.name}: {finding.detail}")
    broken = sum(finding.status == "bad" for finding in listed)
    if args.json:
        print(json.dumps([asdict(finding) for finding in listed], indent=1))
    elif broken:
        print(f"\n{broken} broken: see the lines marked bad", file=sys.stderr)
    return 1 if broken else 0
