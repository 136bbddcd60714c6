"""``flmm heads``: get heads by name, list them, convert and show files, push heads to the hub and pull them."""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import files
from flmm_plugin.cli.localize import add_action as add_localize
from flmm_plugin.cli.model_options import add_no_fetch
from flmm_plugin.cli.output import aligned, markdown_table, print_json
from flmm_plugin.errors import BadCheckpoint, DataNotFound

if TYPE_CHECKING:
    from flmm_plugin.heads.manifest import BackboneFacts
    from flmm_plugin.heads.released import ReleasedLMM

_CONVERT = """\
Read the heads that the paper's authors released (a .pth of tensors; no code in it is run) and write them as one
safetensors file with a manifest. Every tensor is checked against the LMM; heads of another LMM are refused by name.

Released files do not contain SAM's image encoder. With --sam-checkpoint it is stored in OUT, and OUT is all you need.
Without it OUT is small, and the SAM file has to be given whenever the heads are loaded.
"""
_CONVERT_EXAMPLES = """\
examples:
  flmm heads convert frozen_deepseek_vl_1_3b.pth deepseek.safetensors --backbone deepseek-vl-1.3b-chat \\
      --sam-checkpoint vit_l
  flmm ground street.jpg "the man on the left" --model deepseek-community/deepseek-vl-1.3b-chat \\
      --heads deepseek.safetensors
"""


def add_subcommand(commands: Any) -> None:
    """Add ``heads`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "heads",
        help="get heads by name, list them, convert and show files, push to and pull from the hub",
        description="Trained heads are one safetensors file with a manifest that says which model they were trained "
        "for.",
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_get_and_list(actions)
    _add_convert(actions)
    _add_show(actions)
    _add_push_and_pull(actions)
    add_localize(actions)


def _add_get_and_list(actions: Any) -> None:
    get = actions.add_parser(
        "get",
        help="put heads into the store by name: those of the paper, or of a hub repository",
        description="Fetch the heads that were released for an LMM of the paper, convert them, join them with SAM, and "
        "put them into the store, where heads=auto finds them. Of a hub repository, fetch its heads. Heads that are in "
        "the store are not fetched again; an interrupted fetch goes on where it was.",
        epilog="examples:\n  flmm heads get DeepSeekVL-1.3B\n  flmm heads get me/flmm-llava-1.5-7b@v1",
    )
    get.add_argument("name", metavar="NAME", help="the paper's name of an LMM, its hub name, or owner/name[@revision]")
    get.add_argument("--out", type=Path, metavar="FILE", help="also write a copy, .safetensors")
    get.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_no_fetch(get)
    get.set_defaults(run=_get)
    sam = actions.add_parser(
        "get-sam",
        help="put SAM into the store by name",
        description="Fetch Meta's file of SAM once and check it, or take transformers' form of it from the hub; print "
        "where it is. Every command that needs a SAM finds it there.",
        epilog="examples:\n  flmm heads get-sam vit_l\n  flmm heads get-sam facebook/sam-vit-large",
    )
    sam.add_argument("name", metavar="NAME", help="vit_b, vit_l, vit_h, or a folder or hub repository of a SamModel")
    add_no_fetch(sam)
    sam.set_defaults(run=_get_sam)
    released = actions.add_parser(
        "list",
        help="released heads and those in the store",
        description="List the heads of the paper's LMMs with their numbers and whether they are in the store, and all "
        "other heads in the store.",
    )
    released.add_argument("--markdown", action="store_true", help="print the table of docs/heads.md")
    released.add_argument("--json", action="store_true", help="print one JSON list instead of text")
    released.set_defaults(run=_list)


def _add_convert(actions: Any) -> None:
    parser = actions.add_parser(
        "convert", help="released .pth -> safetensors with a manifest", description=_CONVERT, epilog=_CONVERT_EXAMPLES
    )
    parser.add_argument("official", metavar="OFFICIAL.pth", type=Path, help="the file as downloaded")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write, .safetensors")
    parser.add_argument(
        "--backbone",
        required=True,
        metavar="NAME",
        help="the LMM they were trained on: the paper's name, a hub name, or a folder with config.json",
    )
    parser.add_argument("--sam", default="vit_l", metavar="SIZE", help="vit_b, vit_l, vit_h, or a JSON file of numbers")
    parser.add_argument("--sam-checkpoint", metavar="SAM", help="Meta's file, or vit_b, vit_l, vit_h to fetch it")
    parser.add_argument(
        "--no-join", action="store_true", help="use the SAM file for checks, but do not store it in OUT"
    )
    parser.add_argument("--template", help="text of the user's turn with {image} and {prompt} (default: as released)")
    parser.add_argument(
        "--placement", choices=("exact", "cells", "whole"), help="how masks lie on the image (default: as released)"
    )
    parser.add_argument("--storage", choices=("float32", "float16"), default="float32", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.set_defaults(run=_convert)


def _add_show(actions: Any) -> None:
    show = actions.add_parser(
        "show",
        help="what a heads file holds and which models it fits",
        description="Check the hash of a heads file and print its manifest. For a released .pth, say which of the "
        "paper's LMMs has heads of its shape.",
    )
    show.add_argument("file", type=Path, metavar="FILE", help=".safetensors, or a released .pth")
    show.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    show.set_defaults(run=_show)


def _add_push_and_pull(actions: Any) -> None:
    push = actions.add_parser(
        "push",
        help="upload heads with a model card",
        description="Upload a heads file to a hub repository, which is created if it does not exist. The model card "
        "is made from the manifest and from a run's own result file; no number is typed. Log in first: hf auth login.",
        epilog="example:\n  flmm heads push heads.safetensors me/flmm-llava-1.5-7b --results logs/ --private",
    )
    push.add_argument("file", type=Path, metavar="FILE", help="heads, .safetensors")
    push.add_argument("repository", metavar="OWNER/NAME", help="hub repository")
    push.add_argument(
        "--results", type=Path, metavar="PATH", help="*_results.json of lmms-eval, or a folder with one (the newest)"
    )
    push.add_argument("--private", action="store_true", help="make the repository private if it is created now")
    push.add_argument("--message", help="commit message")
    push.add_argument("--licence", default="other", help="licence of the heads, as the hub names it (default: other)")
    push.add_argument("--dry-run", action="store_true", help="print the model card; upload nothing")
    push.set_defaults(run=_push)
    pull = actions.add_parser(
        "pull",
        help="download heads and check them",
        description="Download the heads of a hub repository. Manifest and hash are checked before the file appears.",
        epilog="example:\n  flmm heads pull me/flmm-llava-1.5-7b llava.safetensors --revision v1",
    )
    pull.add_argument("repository", metavar="OWNER/NAME", help="hub repository")
    pull.add_argument("out", metavar="OUT", type=Path, help="file to write, .safetensors")
    pull.add_argument("--revision", help="branch, tag or commit")
    pull.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    pull.set_defaults(run=_pull)


def _get(args: argparse.Namespace) -> int:
    from flmm_plugin.heads.checkpoint import read_manifest
    from flmm_plugin.heads.store import get_heads

    if args.out is not None:
        _check_out(args.out, args.overwrite)
    numbers = lambda: _own_numbers(args.name)  # noqa: E731
    path = get_heads(args.name, fetch=not args.no_fetch, facts=numbers)
    manifest = read_manifest(path)
    print(f"{path}: heads for {manifest.backbone}, {_megabytes(path)}, sha256 of tensors {manifest.sha256}")
    if args.out is not None:
        with files.new_file(args.out) as part:
            shutil.copyfile(path, part)
        print(f"wrote {args.out}")
    return 0


def _get_sam(args: argparse.Namespace) -> int:
    from flmm_plugin.heads.sam_files import sam_file

    path = sam_file(args.name, fetch=not args.no_fetch)
    print(f"{path}: SAM {args.name}, {_megabytes(path)}")
    return 0


def _own_numbers(name: str) -> BackboneFacts | None:
    """Return what the configuration of a released LMM's checkpoint says, None where it cannot be read."""
    from flmm_plugin.heads.released import need_released
    from flmm_plugin.heads_choice import own_facts

    return own_facts(name if "/" in name else need_released(name).hub, None)


def _convert(args: argparse.Namespace) -> int:
    from flmm_plugin.heads import save_heads
    from flmm_plugin.heads.official import convert, read_official

    _check_out(args.out, args.overwrite)
    state = read_official(args.official)
    heads = convert(
        state,
        backbone_numbers(args.backbone),
        sam=_sam(args.sam),
        sam_checkpoint=None if args.sam_checkpoint is None else _sam_path(args.sam_checkpoint),
        join=not args.no_join,
        template=args.template,
        placement=args.placement,
        notes={"converted_from": args.official.name},
    )
    manifest = save_heads(args.out, heads, storage=args.storage)
    print(f"wrote {args.out}: heads for {manifest.backbone}, {len(state)} released tensors, {_megabytes(args.out)}")
    if manifest.stores_image_encoder:
        print("SAM's image encoder is in the file: nothing else is needed to load it")
    else:
        print(f"SAM's image encoder ({manifest.sam}) is not in the file: load it with sam_checkpoint=...")
    return 0


def backbone_numbers(name: str) -> ReleasedLMM | BackboneFacts:
    """Return the LMM that ``--backbone`` names: one of the paper's, else what a model's own configuration says.

    Raises:
        UnknownArgument: Neither one of the paper's nor a folder.
        BackboneUnsupported: A folder of a family that is not implemented.
    """
    from flmm_plugin.heads.released import find_released, need_released

    released = find_released(name)
    if released is not None:
        return released
    if not Path(name).is_dir() and "/" not in name:
        return need_released(name)
    from flmm_plugin.backbones.registry import facts_of

    return facts_of(name)


def _sam(text: str) -> str | dict[str, Any]:
    """Read ``--sam``: a size, or the numbers in a JSON file."""
    path = Path(text)
    if path.suffix != ".json":
        return text
    if not path.is_file():
        raise DataNotFound(
            f"there is no file {path}; give vit_b, vit_l, vit_h, or a JSON file of a small SAM's numbers"
        )
    numbers = files.read_json(path, BadCheckpoint)
    if not isinstance(numbers, dict):
        raise BadCheckpoint(f"{path} must hold a JSON object with the numbers of a small SAM")
    return numbers


def _sam_path(text: str) -> Path:
    """Return the file that ``--sam-checkpoint`` names; a path is as it is, so that a missing file is called that."""
    from flmm_plugin.heads.sam_files import sam_file

    path = Path(text)
    return path if path.suffix in (".pth", ".pt", ".safetensors") else sam_file(text)


def _show(args: argparse.Namespace) -> int:
    content = released_content(args.file) if args.file.suffix in (".pth", ".pt", ".bin") else heads_content(args.file)
    if args.json:
        print_json(content)
        return 0
    print(
        aligned(
            (name, json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value))
            for name, value in content.items()
        )
    )
    return 0


def _list(args: argparse.Namespace) -> int:
    from flmm_plugin.heads.released import RELEASED
    from flmm_plugin.heads.store import stored_heads

    stored = [] if args.markdown else stored_heads()
    here = {one.released.name: str(one.path) for one in stored if one.released is not None}
    rows = [
        {
            "model": one.name,
            "--backbone": one.hub,
            "maps": f"{one.facts.attention_maps} ({one.layers} x {one.heads}"
            + (f" x {one.maps_per_image} views)" if one.maps_per_image > 1 else ")"),
            "hidden size": str(one.hidden_size),
            "template of the phrases' turn": one.template.replace("\n", "⏎"),
            "masks": one.placement,
        }
        for one in RELEASED
    ]
    others = [one for one in stored if one.released is None]
    if args.json:
        listed = [{**row, "in the store": here.get(row["model"])} for row in rows]
        print_json([*listed, *({"in the store": str(one.path), **asdict(one.manifest)} for one in others)])
    elif args.markdown:
        code = ("--backbone", "template of the phrases' turn")
        cells = [[f"`{value}`" if name in code else value for name, value in row.items()] for row in rows]
        print(markdown_table(list(rows[0]), cells))
    else:
        shown = ("model", "--backbone", "maps", "hidden size", "masks")
        header = (*shown, "in the store")
        print(aligned([header, *([*(row[name] for name in shown), here.get(row["model"], "no")] for row in rows)]))
        for one in others:
            source = one.manifest.notes.get("source", "unknown")
            print(f"{one.path}: heads for {one.manifest.backbone}, from {source}")
        print("flmm heads get MODEL brings released heads; heads=auto finds what is in the store")
    return 0


def heads_content(path: Path) -> dict[str, Any]:
    """Return the manifest of a heads file with the sizes of its parts; the file's hash is checked.

    Raises:
        BadCheckpoint: As `load_heads`.
    """
    from flmm_plugin.heads.checkpoint import read_manifest, verify_tensors

    manifest, state = read_manifest(path), verify_tensors(path)
    numbers: Counter[str] = Counter()
    for name, tensor in state.items():
        depth = 3 if name.startswith("mask_refiner.sam.") else 1
        numbers[".".join(name.split(".")[:depth])] += tensor.numel()
    return {
        "file": str(path),
        "size": _megabytes(path),
        "tensors": len(state),
        "numbers": numbers,
        "attention_maps": manifest.attention_maps,
        "sam_image_encoder": "in the file" if manifest.stores_image_encoder else "given on loading",
        **asdict(manifest),
    }


def released_content(path: Path) -> dict[str, Any]:
    """Return what the shapes in a released .pth say about the LMM that its heads were trained for.

    Raises:
        BadCheckpoint, UnsafePickle: As `read_official`.
    """
    from flmm_plugin.heads.official import describe, read_official
    from flmm_plugin.heads.released import of_shape

    state = read_official(path)
    maps, layers, hidden = describe(state)
    return {
        "file": str(path),
        "size": _megabytes(path),
        "tensors": len(state),
        "attention_maps": maps,
        "layers": layers,
        "hidden_size": hidden,
        "shape of heads for": ", ".join(one.name for one in of_shape(maps, layers, hidden)) or "no LMM of the paper",
        "next": f"flmm heads convert {path} OUT.safetensors --backbone NAME --sam-checkpoint vit_l",
    }


def _push(args: argparse.Namespace) -> int:
    from flmm_plugin.heads.checkpoint import read_manifest
    from flmm_plugin.heads.hub import find_results, model_card, push_heads

    results = find_results(args.results) if args.results is not None else None
    if args.dry_run:
        print(model_card(read_manifest(args.file), args.repository, results, licence=args.licence))
        return 0
    url = push_heads(
        args.file, args.repository, results=results, private=args.private, message=args.message, licence=args.licence
    )
    print(f"pushed to {url}")
    return 0


def _pull(args: argparse.Namespace) -> int:
    from flmm_plugin.heads.hub import pull_heads

    _check_out(args.out, args.overwrite)
    manifest = pull_heads(args.repository, args.out, revision=args.revision)
    print(f"wrote {args.out}: heads for {manifest.backbone}, sha256 of tensors {manifest.sha256}")
    return 0


def _check_out(out: Path, overwrite: bool) -> None:
    """Check the place of OUT before anything is read, which may take minutes."""
    if out.suffix != ".safetensors":
        raise DataNotFound(f"heads are written as .safetensors; give {out.with_suffix('.safetensors')}")
    if out.exists() and not overwrite:
        raise DataNotFound(f"{out} is there already; give another OUT, or --overwrite")
    files.check_file_place(out, parents=False)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
