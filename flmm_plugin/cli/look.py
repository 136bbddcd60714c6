"""``flmm ground``, ``flmm chat`` and ``flmm attention``: look at one picture with one model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from os.path import exists, isdir, isfile  # a name that no system can have: False, where Path raises
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flmm_plugin
from flmm_plugin import files
from flmm_plugin.bundled import EMBEDDED
from flmm_plugin.cli.model_options import add_model_options, check_model_options, checked_model, positive, refuse_idle
from flmm_plugin.errors import (
    BadCheckpoint,
    BadImage,
    DataNotFound,
    EmptyPhrase,
    HeadsMismatch,
    OutputFailed,
    UnknownArgument,
)
from flmm_plugin.text_checks import check_text, checked_phrases, has_words

if TYPE_CHECKING:
    from PIL import Image

    from flmm_plugin.grounded_lmm import GroundedLMM
    from flmm_plugin.records import Grounding

_OUT = "where to write, without ending (default: the picture's name and the command's, in this folder)"
_OF_HEADS = ("heads", "sam", "no-refine")


def add_subcommands(commands: Any) -> None:
    """Add the three commands to the parser of ``flmm``."""
    ground = _command(
        commands,
        "ground",
        "find phrases in a picture",
        "Find each phrase in the picture and write NAME.png (masks and legend) and NAME.json (masks as COCO RLE, "
        "boxes, scores). The phrases form one answer, so later ones see earlier ones; --separate asks for each alone. "
        "A score is the mean probability inside the mask: how sure its pixels are, not whether the thing is in the "
        "picture at all. It is as high for one that is not.",
        'flmm ground street.jpg "the man on the left" "his dog" --out street',
    )
    ground.add_argument("phrases", metavar="PHRASE", nargs="+", help="what to look for; quote phrases of several words")
    ground.add_argument(
        "--prompt", help="the user's turn before the phrases (default: the one the heads were trained with)"
    )
    ground.add_argument("--separate", action="store_true", help="one answer for each phrase")
    add_heads(ground)
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
        "--max-new-tokens", type=positive, default=64, metavar="N", help="length limit (default: %(default)s)"
    )
    chat.add_argument(
        "--threshold", type=_share, help="score from which a word is grounded, 0 to 1 (default: the heads' own)"
    )
    add_heads(chat)
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
    attention.add_argument("--clusters", type=positive, metavar="K", help="of the K-means view (default: 4)")
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
    add_heads(attention)
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
    add_model_options(parser.add_argument_group("model"))
    parser.add_argument("--out", type=Path, metavar="NAME", help=_OUT)
    return parser


def add_heads(parser: argparse.ArgumentParser) -> None:
    """Add ``--heads``, ``--sam`` and ``--no-refine``."""
    group = parser.add_argument_group("heads")
    option = group.add_argument
    option(
        "--heads",
        metavar="FILE",
        help="auto: those of the model, fetched once (the default); a file, owner/name on the hub; without training: "
        "attention-argmax, attend-and-segment, localization-heads; none: chat only",
    )
    option("--sam", metavar="FILE", help="SAM file or size, where heads need one (default: Meta's own, fetched once)")
    option("--no-refine", action="store_true", help="the mask decoder's coarse masks; SAM is not run")


def _ground(args: argparse.Namespace) -> int:
    phrases = checked_phrases(args.phrases)
    picture, out = _begin(args), _stem(args, "ground")
    lmm = load_model(args, checked_heads(args))
    found = lmm.ground(picture, phrases, prompt=args.prompt, joint=not args.separate, refine=not args.no_refine)
    _print_groundings(found)
    _write(out, args, picture, found, "", lmm)
    return 0


def _chat(args: argparse.Namespace) -> int:
    check_text(args.question, "the question")
    if not has_words(args.question):
        raise EmptyPhrase(f"the question is empty ({args.question!r}); ask something about the picture")
    if not args.ground or args.heads == "none":
        if not args.ground:
            refuse_idle(args, _OF_HEADS, "with --no-ground")
        refuse_idle(args, ("sam", "no-refine", "threshold", "out"), "where the answer is not grounded")
        picture = _begin(args)
        lmm = load_model(args, None)
        print(lmm.chat(picture, args.question, max_new_tokens=args.max_new_tokens).text)
        return 0
    picture, out = _begin(args), _stem(args, "chat")
    lmm = load_model(args, checked_heads(args))
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
    checked_phrases([args.phrase])
    if not args.masks:
        refuse_idle(args, _OF_HEADS, "without --masks")
    if args.masks:
        refuse_idle(args, ("compare",), "with --masks")
    if args.compare:
        refuse_idle(args, ("clusters",), "with --compare")
    others = [checked_model(name, "--compare") for name in args.compare]
    picture, out = _begin(args), _stem(args, "attention")
    heads = checked_heads(args) if args.masks else None
    from flmm_plugin.reports.attention_figures import AttentionView, compare_attention, contact_sheet, pipeline

    clusters = args.clusters or 4
    lmm = load_model(args, heads)
    attention = lmm.attention_maps(picture, args.phrase, prompt=args.prompt)
    first = AttentionView(str(args.model), attention.maps, attention.grid)
    if args.masks:
        (found,) = lmm.ground(picture, [args.phrase], prompt=args.prompt, refine=not args.no_refine)
        sheet = pipeline(picture, first, found, clusters=clusters)
    elif others:
        views = [first]
        for name in others:
            # One model at a time: two of real size do not fit side by side.
            del lmm
            # The revision is that of --model.
            args.model, args.revision, args.model_by_default = name, None, False
            lmm = load_model(args, None)
            other = lmm.attention_maps(picture, args.phrase, prompt=args.prompt)
            views.append(AttentionView(name, other.maps, other.grid))
        sheet = compare_attention(views, picture, phrase=args.phrase)
    else:
        sheet = contact_sheet(attention.maps, picture, attention.grid, phrase=args.phrase, clusters=clusters)
    path = _file(out, ".png")
    with files.new_file(path) as part:
        sheet.save(part, format="PNG")
    print(f"wrote {path}", file=sys.stderr)
    return 0


def _begin(args: argparse.Namespace) -> Image.Image:
    """Open the picture and check what can be checked without torch.

    Raises:
        BadImage: There is no such picture, or it cannot be read.
        UnknownArgument: There is no such model or device.
    """
    from flmm_plugin.images import open_image

    if "://" not in args.image and not isfile(args.image):
        raise BadImage(f"there is no file {args.image}; the picture comes first, then the words")
    picture = open_image(args.image)
    args.model_by_default = args.model is None
    check_model_options(args)
    if getattr(args, "prompt", None) is not None:
        check_text(args.prompt, "--prompt")
    return picture


def checked_heads(args: argparse.Namespace) -> str:
    """Return the heads to load.

    Raises:
        BadCheckpoint: There is no such file.
        UnknownArgument: Options that exclude each other.
    """
    if args.heads == "none":
        raise UnknownArgument(
            "--heads none loads no heads, and without heads nothing is grounded; flmm chat --no-ground only chats, and "
            "--heads attention-argmax grounds without training"
        )
    if args.no_refine:
        refuse_idle(args, ("sam",), "with --no-refine: SAM is not run")
    heads: str = args.heads or "auto"
    if heads == "auto" and args.model == EMBEDDED:
        refuse_idle(args, ("sam",), f"for the heads of {EMBEDDED}, which have their own")
    if args.sam is not None and Path(args.sam).suffix and not isfile(args.sam):
        raise BadCheckpoint(f"there is no SAM file {args.sam}; give vit_b, vit_l or vit_h to fetch Meta's own")
    if heads.endswith(".safetensors") and not exists(heads):
        raise BadCheckpoint(f"there is no heads file {heads}; give the .safetensors file that training wrote")
    return heads


def load_model(args: argparse.Namespace, heads: str | None, *, required: bool = True) -> GroundedLMM:
    """Load the model that options name, and its heads.

    Args:
        args: Options of `add_model_options` and `add_heads`, checked.
        heads: What `checked_heads` returned; None: chat and attention only.
        required: Refuse a model for which ``auto`` finds no heads, instead of loading it without.

    Raises:
        HeadsMismatch: There are no heads for it.
    """
    if args.model_by_default:
        print(
            f"flmm: {EMBEDDED}, the default model, knows only drawn shapes like those of its training; give --model "
            "for any other picture",
            file=sys.stderr,
        )
    from flmm_plugin.grounded_lmm import GroundedLMM
    from flmm_plugin.heads_choice import check_heads, no_heads_text

    sam = "none" if heads is not None and args.no_refine else None
    fetch = not args.no_fetch
    chosen = None
    if heads is not None:
        chosen = check_heads(args.model, heads, sam=sam, sam_checkpoint=args.sam, revision=args.revision, fetch=fetch)
        if chosen is None and required:
            raise HeadsMismatch(no_heads_text(args.model, args.revision))
    return GroundedLMM.from_pretrained(
        args.model,
        heads=chosen,
        fetch=fetch,
        revision=args.revision,
        dtype=args.dtype,
        device=args.device,
        sam=sam,
        sam_checkpoint=args.sam,
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
    from flmm_plugin.figures import overlay
    from flmm_plugin.records import masks_json

    drawing, record = _file(out, ".png"), _file(out, ".json")
    content = json.loads(masks_json(found, text, size=(picture.height, picture.width)))
    heads = lmm.heads.manifest if lmm.heads is not None else None
    content["provenance"] = {
        "program": f"flmm-plugin {flmm_plugin.__version__}",
        # The name of a file need be no text; JSON is.
        "image": args.image.encode(errors="backslashreplace").decode(),
        "model": str(args.model),
        "heads_sha256": heads.sha256 if heads is not None else None,
        "refined": lmm.heads is not None and lmm.heads.mask_refiner is not None,
    }
    files.write(record, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    with files.new_file(drawing) as part:
        overlay(picture, found).save(part, format="PNG")
    print(f"wrote {drawing} and {record}", file=sys.stderr)


def _stem(args: argparse.Namespace, command: str) -> Path:
    """Return the path to write to, without ending: ``--out`` (less .png or .json) or ``<picture>.<command>`` here.

    Asked for before a model is loaded, so that a wrong place costs no minutes.

    Raises:
        DataNotFound: There is no such folder.
        OutputFailed: The place cannot be written, or the picture itself lies there.
    """
    out: Path = args.out if args.out is not None else Path(f"{Path(args.image).stem}.{command}")
    if out.suffix in (".png", ".json"):
        out = out.with_suffix("")
    if not out.name or out.name == "..":
        raise OutputFailed(f"--out {str(args.out)!r} names no file; give a name, such as --out {out / command}")
    if not isdir(out.parent):
        raise DataNotFound(f"there is no folder {out.parent} to write into; make it, or give another --out")
    for ending in (".png",) if command == "attention" else (".png", ".json"):
        place = _file(out, ending)
        files.check_file_place(place)
        if place.exists() and place.samefile(args.image):
            raise OutputFailed(f"{place} is the picture itself and would be written over; give another --out")
    return out


def _file(out: Path, ending: str) -> Path:
    return out.with_name(out.name + ending)


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
