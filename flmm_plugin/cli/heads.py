"""``flmm heads``: convert released heads, look into a heads file, share heads through a hub repository."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin import files
from flmm_plugin.cli import localize
from flmm_plugin.errors import BadCheckpoint, DataNotFound

if TYPE_CHECKING:
    from flmm_plugin.heads.manifest import BackboneFacts
    from flmm_plugin.heads.released import ReleasedLMM

_TEMPLATE = "template of the phrases' turn"

_CONVERT = """\
Read the heads that the paper's authors released (a .pth of tensors; no code in it is run) and write them as one
safetensors file with a manifest. Every tensor is checked against the LMM: heads of another one are named.

Released files hold no image encoder of SAM. With --sam-checkpoint it is stored in OUT too, and OUT is all that is
needed; without, OUT is small and the SAM file is asked for whenever the heads are loaded.
"""
_CONVERT_EXAMPLES = """\
examples:
  flmm heads convert frozen_deepseek_vl_1_3b.pth deepseek.safetensors --backbone deepseek-vl-1.3b-chat \\
      --sam-checkpoint sam_vit_l_0b3195.pth
  flmm ground street.jpg "the man on the left" --model deepseek-community/deepseek-vl-1.3b-chat \\
      --heads deepseek.safetensors
"""


def add_subcommand(commands: Any) -> None:
    """Add ``heads`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "heads",
        help="convert released heads, show what a file holds, push to and pull from the hub",
        description="Trained heads: one safetensors file with a manifest of what they were trained for.",
    )
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_convert(actions)
    _add_show(actions)
    _add_list(actions)
    _add_push(actions)
    _add_pull(actions)
    localize.add_action(actions)


def _add_convert(actions: Any) -> None:
    parser = actions.add_parser(
        "convert",
        help="released .pth -> safetensors with a manifest",
        description=_CONVERT,
        epilog=_CONVERT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("official", metavar="OFFICIAL.pth", type=Path, help="as downloaded")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write, .safetensors")
    parser.add_argument(
        "--backbone",
        required=True,
        metavar="NAME",
        help="the LMM they were trained on: the paper's name, a hub name, or a folder with config.json",
    )
    parser.add_argument("--sam", default="vit_l", metavar="SIZE", help="vit_b, vit_l, vit_h, or a JSON file of numbers")
    parser.add_argument("--sam-checkpoint", type=Path, metavar="FILE", help="Meta's file, e.g. sam_vit_l_0b3195.pth")
    parser.add_argument(
        "--no-join", action="store_true", help="use the SAM file for checks, but do not store it in OUT"
    )
    parser.add_argument("--template", help="text of the user's turn with {image} and {prompt} (default: as released)")
    parser.add_argument(
        "--placement", choices=("exact", "cells", "whole"), help="how masks lie on the picture (default: as released)"
    )
    parser.add_argument("--storage", choices=("float32", "float16"), default="float32", help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.set_defaults(run=_convert)


def _add_show(actions: Any) -> None:
    parser = actions.add_parser(
        "show",
        help="what a heads file holds and which models it fits",
        description="Print the manifest of a heads file after checking its hash, or say which of the paper's LMMs a "
        "released .pth has the shape of.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=".safetensors, or a released .pth")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=_show)


def _add_list(actions: Any) -> None:
    parser = actions.add_parser(
        "list",
        help="the LMMs that heads were released for",
        description="The paper's LMMs: names for --backbone, numbers of their heads, and how those were trained.",
    )
    parser.add_argument("--markdown", action="store_true", help="as the table of docs/heads.md")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=_list)


def _add_push(actions: Any) -> None:
    parser = actions.add_parser(
        "push",
        help="upload heads with a model card",
        description="Upload a heads file to a hub repository, made if need be, with a model card of what the manifest "
        "and a run's own result file say; no number is typed. Log in first: hf auth login.",
        epilog="example:\n  flmm heads push heads.safetensors me/flmm-llava-1.5-7b --results logs/ --private",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="heads, .safetensors")
    parser.add_argument("repository", metavar="OWNER/NAME", help="hub repository")
    parser.add_argument(
        "--results", type=Path, metavar="PATH", help="*_results.json of lmms-eval, or a folder with one (the newest)"
    )
    parser.add_argument("--private", action="store_true", help="if the repository is made now")
    parser.add_argument("--message", help="of the commit")
    parser.add_argument("--licence", default="other", help="of the heads, as the hub names it (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print the model card; upload nothing")
    parser.set_defaults(run=_push)


def _add_pull(actions: Any) -> None:
    parser = actions.add_parser(
        "pull",
        help="download heads and check them",
        description="Download the heads of a hub repository and check manifest and hash before the file appears.",
        epilog="example:\n  flmm heads pull me/flmm-llava-1.5-7b llava.safetensors --revision v1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="hub repository")
    parser.add_argument("out", metavar="OUT", type=Path, help="file to write, .safetensors")
    parser.add_argument("--revision", help="branch, tag or commit")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.set_defaults(run=_pull)


def _convert(args: argparse.Namespace) -> int:
    from flmm_plugin.heads import save_heads
    from flmm_plugin.heads.official import convert, read_official

    _check_out(args.out, args.overwrite)
    state = read_official(args.official)
    backbone = backbone_numbers(args.backbone)
    heads = convert(
        state,
        backbone,
        sam=_sam(args.sam),
        sam_checkpoint=args.sam_checkpoint,
        join=not args.no_join,
        template=args.template,
        placement=args.placement,
        source=args.official.name,
    )
    manifest = save_heads(args.out, heads, storage=args.storage)
    print(f"wrote {args.out}: heads for {manifest.backbone}, {len(state)} released tensors, {_megabytes(args.out)}")
    if manifest.stores_image_encoder:
        print("SAM's image encoder is in the file: nothing else is needed to load it")
    else:
        print(f"SAM's image encoder ({manifest.sam}) is not in the file: load it with sam_checkpoint=...")
    return 0


def backbone_numbers(name: str) -> ReleasedLMM | BackboneFacts:
    """The LMM that ``--backbone`` means: one of the paper's by name, else what a model's own configuration says.

    Raises:
        UnknownArgument: Neither one of the paper's nor a folder.
        BackboneUnsupported: A folder of a family that is not implemented.
    """
    from flmm_plugin.heads.released import find_released, need_released

    folder = Path(name).is_dir()
    released = find_released(name)
    if released is not None or not (folder or "/" in name):
        return released or need_released(name)
    from flmm_plugin.backbones.facts import facts_of

    return facts_of(name)


def _sam(text: str) -> str | dict[str, Any]:
    """``--sam``: a size, or the numbers in a JSON file."""
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


def _show(args: argparse.Namespace) -> int:
    content = released_content(args.file) if args.file.suffix in (".pth", ".pt", ".bin") else heads_content(args.file)
    if args.json:
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return 0
    width = max(len(name) for name in content)
    for name, value in content.items():
        shown = json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)
        print(f"{name.ljust(width)}  {shown}")
    return 0


def released_table() -> list[dict[str, str]]:
    """One row for each LMM that heads were released for."""
    from flmm_plugin.heads.released import RELEASED

    return [
        {
            "model": one.name,
            "--backbone": one.hub,
            "maps": f"{one.facts.attention_maps} ({one.layers} x {one.heads}"
            + (f" x {one.maps_per_image} views)" if one.maps_per_image > 1 else ")"),
            "hidden size": str(one.hidden_size),
            _TEMPLATE: one.template.replace("\n", "⏎"),
            "masks": one.placement,
        }
        for one in RELEASED
    ]


def _list(args: argparse.Namespace) -> int:
    rows = released_table()
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    if args.markdown:
        print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
        for row in rows:
            values = {**row, "--backbone": f"`{row['--backbone']}`"}
            values[_TEMPLATE] = f"`{row[_TEMPLATE]}`"
            print("| " + " | ".join(value.replace("|", "\\|") for value in values.values()) + " |")
        return 0
    shown = ("model", "--backbone", "maps", "hidden size", "masks")
    widths = [max(len(name), *(len(row[name]) for row in rows)) for name in shown]
    for row in [dict(zip(shown, shown, strict=True)), *rows]:
        print("  ".join(row[name].ljust(width) for name, width in zip(shown, widths, strict=True)).rstrip())
    return 0


def heads_content(path: Path) -> dict[str, Any]:
    """Manifest and measures of a heads file; its hash is checked.

    Raises:
        BadCheckpoint: As `load_heads`.
    """
    from flmm_plugin.heads.checkpoint import read_manifest, verify_tensors

    manifest, state = read_manifest(path), verify_tensors(path)
    parts: dict[str, int] = {}
    for name, tensor in state.items():
        part = name.split(".")[0] if not name.startswith("mask_refiner.sam.") else ".".join(name.split(".")[:3])
        parts[part] = parts.get(part, 0) + tensor.numel()
    return {
        "file": str(path),
        "size": _megabytes(path),
        "tensors": len(state),
        "numbers": parts,
        "attention_maps": manifest.attention_maps,
        "sam_image_encoder": "in the file" if manifest.stores_image_encoder else "given on loading",
        **asdict(manifest),
    }


def released_content(path: Path) -> dict[str, Any]:
    """What a released .pth was trained for, as far as its shapes tell.

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
        "next": f"flmm heads convert {path} OUT.safetensors --backbone NAME --sam-checkpoint sam_vit_l_0b3195.pth",
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
    """Before anything is read: a wrong OUT should not cost minutes."""
    if out.suffix != ".safetensors":
        raise DataNotFound(f"heads are written as .safetensors; give {out.with_suffix('.safetensors')}")
    if out.exists() and not overwrite:
        raise DataNotFound(f"{out} is there already; give another OUT, or --overwrite")
    files.check_file_place(out, parents=False)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f} MB"
