"""``flmm ground``, ``flmm chat`` and ``flmm attention``: look at one picture with one model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flmm_plugin
from flmm_plugin.errors import BadImage, DataNotFound

if TYPE_CHECKING:
    from PIL import Image

    from flmm_plugin.grounded_lmm import GroundedLMM
    from flmm_plugin.records import Grounding

_OUT = "where to write, without ending (default: the picture's name and the command's, in this folder)"


def add_subcommands(commands: Any) -> None:
    """Add the three commands to the parser of ``flmm``."""
    ground = _command(
        commands,
        "ground",
        "find phrases in a picture",
        "Find each phrase in the picture and write NAME.png (masks and legend) and NAME.json (masks as COCO RLE, "
        "boxes, scores). The phrases form one answer, so later ones see earlier ones; --separate asks for each alone.",
        'flmm ground street.jpg "the man on the left" "his dog" --out street',
    )
    ground.add_argument("phrases", metavar="PHRASE", nargs="+", help="what to look for; quote phrases of several words")
    ground.add_argument(
        "--prompt", help="the user's turn before the phrases (default: the one the heads were trained with)"
    )
    ground.add_argument("--separate", action="store_true", help="one answer for each phrase")
    _add_heads(ground)
    ground.set_defaults(run=_ground)

    chat = _command(
        commands,
        "chat",
        "ask about a picture, and see what the answer names",
        "Print the answer, which is the one the plain model gives, and write NAME.png and NAME.json with a mask for "
        "each thing that it names. --no-ground only chats: no heads are loaded and nothing is written.",
        'flmm chat street.jpg "Who is walking the dog?"',
    )
    chat.add_argument("question", metavar="QUESTION", help="the user's words")
    chat.add_argument("--ground", action=argparse.BooleanOptionalAction, default=True, help="masks for what it names")
    chat.add_argument(
        "--max-new-tokens", type=_positive, default=64, metavar="N", help="length limit (default: %(default)s)"
    )
    chat.add_argument("--threshold", type=float, help="score from which a word is grounded (default: the heads' own)")
    _add_heads(chat)
    chat.set_defaults(run=_chat)

    attention = _command(
        commands,
        "attention",
        "draw all attention maps of a phrase",
        "Write NAME.png: the picture, the mean of all maps, a K-means view of all maps together, and one small map for "
        "every layer (row) and head (column). Needs no heads, so it works for any supported model.",
        'flmm attention street.jpg "the dog" --model llava-hf/llava-1.5-7b-hf',
    )
    attention.add_argument("phrase", metavar="PHRASE", help="whose attention; quote a phrase of several words")
    attention.add_argument(
        "--clusters", type=_positive, default=4, metavar="K", help="of the K-means view (default: 4)"
    )
    attention.add_argument("--prompt", help="the user's turn before the phrase")
    attention.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="MODEL",
        help="instead of all maps: the sharpest maps of --model and of this one, a row for each (may be repeated)",
    )
    attention.add_argument(
        "--masks", action="store_true", help="instead of all maps: clusters of maps, decoder's mask, refined mask"
    )
    _add_heads(attention)
    attention.set_defaults(run=_attention)


def _command(commands: Any, name: str, help_: str, description: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help_,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture file")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="flmm_tiny", help="flmm_tiny, a folder or a hub name (default: %(default)s)")
    model.add_argument("--revision", help="of the model on the hub")
    model.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")
    model.add_argument("--dtype", default="auto", help="float32, bfloat16, ... (default: as stored)")
    parser.add_argument("--out", type=Path, metavar="NAME", help=_OUT)
    return parser


def _add_heads(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("heads")
    group.add_argument(
        "--heads",
        default="auto",
        metavar="FILE",
        help="safetensors file (default: those of flmm_tiny); or, without training: attention-argmax, "
        "attend-and-segment, localization-heads",
    )
    group.add_argument("--sam", metavar="FILE", help="Meta's SAM checkpoint, where the heads ask for one")
    group.add_argument("--no-refine", action="store_true", help="the mask decoder's coarse masks; SAM is not run")


def _ground(args: argparse.Namespace) -> int:
    picture, out = _open(args.image), _stem(args, "ground")
    lmm = _load(args, args.heads)
    found = lmm.ground(picture, args.phrases, prompt=args.prompt, joint=not args.separate, refine=not args.no_refine)
    _print_groundings(found)
    _write(out, args, picture, found, "", lmm)
    return 0


def _chat(args: argparse.Namespace) -> int:
    picture, out = _open(args.image), _stem(args, "chat")
    lmm = _load(args, args.heads if args.ground else None)
    if not args.ground:
        print(lmm.chat(picture, args.question, max_new_tokens=args.max_new_tokens).text)
        return 0
    answer = lmm.grounded_chat(
        picture,
        args.question,
        max_new_tokens=args.max_new_tokens,
        threshold=args.threshold,
        refine=not args.no_refine,
    )
    print(answer.text)
    _print_groundings(answer.groundings)
    _write(out, args, picture, answer.groundings, answer.text, lmm)
    return 0


def _attention(args: argparse.Namespace) -> int:
    from flmm_plugin.reports.attention_figures import AttentionView, compare_attention, pipeline
    from flmm_plugin.reports.figures import contact_sheet

    picture, out = _open(args.image), _stem(args, "attention")
    lmm = _load(args, args.heads if args.masks else None)
    attention = lmm.attention_maps(picture, args.phrase, prompt=args.prompt)
    first = AttentionView(str(args.model), attention.maps, attention.grid)
    if args.masks:
        (found,) = lmm.ground(picture, [args.phrase], prompt=args.prompt, refine=not args.no_refine)
        sheet = pipeline(picture, first, found, clusters=args.clusters)
    elif args.compare:
        views = [first]
        for name in args.compare:
            # One model at a time: two of real size do not fit side by side.
            del lmm
            args.model = name
            lmm = _load(args, None)
            other = lmm.attention_maps(picture, args.phrase, prompt=args.prompt)
            views.append(AttentionView(name, other.maps, other.grid))
        sheet = compare_attention(views, picture, phrase=args.phrase)
    else:
        sheet = contact_sheet(attention.maps, picture, attention.grid, phrase=args.phrase, clusters=args.clusters)
    path = out.with_name(f"{out.name}.png")
    sheet.save(path)
    print(f"wrote {path}", file=sys.stderr)
    return 0


def _open(path: str) -> Image.Image:
    from flmm_plugin.images import open_image

    if not Path(path).is_file():
        raise BadImage(f"there is no file {path}; the picture comes first, then the words")
    return open_image(path)


def _load(args: argparse.Namespace, heads: str | None) -> GroundedLMM:
    from flmm_plugin.grounded_lmm import GroundedLMM

    return GroundedLMM.from_pretrained(
        args.model,
        heads=heads,
        revision=args.revision,
        dtype=args.dtype,
        device=args.device,
        sam_checkpoint=getattr(args, "sam", None),
    )


def _print_groundings(found: Sequence[Grounding]) -> None:
    for number, one in enumerate(found, start=1):
        x0, y0, x1, y1 = (round(side) for side in one.box)
        where = f"box {x0},{y0} to {x1},{y1}   score {one.score:.2f}" if one.mask.any() else "empty mask"
        print(f"  {number}  {one.phrase}   {where}")
    if not found:
        print("  (nothing to ground)")


def _write(
    out: Path,
    args: argparse.Namespace,
    picture: Image.Image,
    found: Sequence[Grounding],
    text: str,
    lmm: GroundedLMM,
) -> None:
    from flmm_plugin.records import masks_json
    from flmm_plugin.reports.figures import overlay

    drawing, record = (out.with_name(out.name + ending) for ending in (".png", ".json"))
    content = json.loads(masks_json(found, text, size=(picture.height, picture.width)))
    heads = lmm.heads.manifest if lmm.heads is not None else None
    content["provenance"] = {
        "program": f"flmm-plugin {flmm_plugin.__version__}",
        "image": str(args.image),
        "model": str(args.model),
        "heads_sha256": heads.sha256 if heads is not None else None,
        "refined": not args.no_refine,
    }
    record.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    overlay(picture, found).save(drawing)
    print(f"wrote {drawing} and {record}", file=sys.stderr)


def _stem(args: argparse.Namespace, command: str) -> Path:
    """Where to write, without ending: ``--out`` (an ending .png or .json is dropped) or ``<picture>.<command>`` here.

    Asked for before a model is loaded, so that a wrong folder costs no minutes.
    """
    out: Path = args.out if args.out is not None else Path(f"{Path(args.image).stem}.{command}")
    if out.suffix in (".png", ".json"):
        out = out.with_suffix("")
    if not out.parent.is_dir():
        raise DataNotFound(f"there is no folder {out.parent} to write into; make it, or give another --out")
    return out


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a number >= 1")
    return value
