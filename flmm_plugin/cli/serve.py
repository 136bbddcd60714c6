"""``flmm serve``: an interactive page for one model."""

from __future__ import annotations

import argparse
import importlib.util
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_plugin.cli.look import add_heads, checked_heads, load_model
from flmm_plugin.cli.model_options import add_model_options, check_model_options, positive
from flmm_plugin.errors import DataNotFound, UnknownArgument

if TYPE_CHECKING:
    from flmm_plugin.serve.page import Example

_DESCRIPTION = """\
Serve a page on which to chat about a picture, click a word to see its mask, click or drag on the picture to see which
words look there, mix attention heads, and look twice. It is for this machine alone unless --host says otherwise, and
asks nothing of any other machine. Ctrl-C ends it."""
_EPILOG = """\
examples:
  flmm serve                                                the embedded model, on http://127.0.0.1:7860
  flmm serve --model llava-hf/llava-1.5-7b-hf --device cuda
  flmm serve --examples pictures/                           with pictures of your own to choose from

needs gradio: pip install 'flmm-plugin[serve]'
"""
_EXAMPLES = 12


def add_subcommand(commands: Any) -> None:
    """Add ``serve`` to the parser of ``flmm``."""
    parser = commands.add_parser(
        "serve",
        help="an interactive page: chat, masks of words, words of places, attention",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_options(parser.add_argument_group("model"))
    add_heads(parser)
    page = parser.add_argument_group("page")
    page.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    page.add_argument("--port", type=positive, default=7860, help="default: %(default)s")
    page.add_argument("--examples", type=Path, metavar="FOLDER", help="pictures to choose from")
    page.add_argument(
        "--max-upload", type=positive, default=20, metavar="MB", help="largest picture that is taken (default: 20)"
    )
    page.add_argument(
        "--max-new-tokens", type=positive, default=64, metavar="N", help="length of an answer (default: %(default)s)"
    )
    parser.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("gradio") is None:
        raise UnknownArgument("flmm serve needs gradio; install it with: pip install 'flmm-plugin[serve]'")
    args.model_by_default = args.model is None
    check_model_options(args)
    if args.examples is not None and not args.examples.is_dir():
        raise DataNotFound(f"there is no folder {args.examples}; --examples takes a folder of pictures")
    heads = checked_heads(args)
    _check_address(args.host, args.port)
    examples = _examples(args)
    from flmm_plugin.serve.serving import serve

    lmm = load_model(args, heads, required=False)
    print("flmm: Ctrl-C ends it", file=sys.stderr)
    serve(
        lmm,
        examples,
        host=args.host,
        port=args.port,
        max_upload_mb=args.max_upload,
        max_new_tokens=args.max_new_tokens,
    )
    return 0


def _check_address(host: str, port: int) -> None:
    """Raise `UnknownArgument` where nothing can listen, before a model is loaded."""
    try:
        with socket.create_server((host, port)):
            return
    except (OSError, OverflowError) as exc:
        raise UnknownArgument(f"cannot listen on {host} port {port} ({exc}); give another --port or --host") from exc


def _examples(args: argparse.Namespace) -> list[Example]:
    """Return the pictures to choose from: those of a folder, or those that come with the model."""
    from flmm_plugin import bundled
    from flmm_plugin.images import open_image
    from flmm_plugin.serve.page import Example

    if args.examples is not None:
        endings = (".jpg", ".jpeg", ".png", ".webp")
        paths = sorted(path for path in args.examples.iterdir() if path.suffix.lower() in endings)
        if not paths:
            raise DataNotFound(f"{args.examples} has no pictures ({', '.join(endings)})")
        return [Example(open_image(path)) for path in paths[:_EXAMPLES]]
    if not bundled.is_model(args.model):
        return []
    return [Example(picture, questions) for picture, questions in bundled.model(args.model).examples()]
