"""Serve the page on this machine: one queue, no request to anywhere else."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import gradio as gr

from flmm_plugin.errors import UnknownArgument
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.serve.page import Example, build_page

#: Fonts of the reader's machine; gradio's own themes may name some that a browser would fetch.
_FONTS = ("system-ui", "sans-serif")
_MONO = ("ui-monospace", "monospace")


def serve(
    lmm: GroundedLMM,
    examples: Sequence[Example] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    max_upload_mb: int = 20,
    max_new_tokens: int = 64,
    wait: bool = True,
) -> tuple[gr.Blocks, str]:
    """Serve the page for one model until Ctrl-C.

    Args:
        lmm: The model; visitors use it one after another.
        examples: Pictures to choose from; the first one is there at the start.
        host: Address to listen on; ``127.0.0.1`` for this machine alone.
        port: Port to listen on; 0 for any free one.
        max_upload_mb: Largest picture that is taken, megabytes.
        max_new_tokens: Length limit of an answer.
        wait: Whether to return only when it has ended.

    Returns:
        The page, whose ``close`` ends it, and its address.

    Raises:
        UnknownArgument: The port is in use, or there is no such address here.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio asks itself whether it is there
    blocks = build_page(lmm, examples, max_new_tokens=max_new_tokens)
    blocks.queue(max_size=64, api_open=False)
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port or None,
            max_file_size=f"{max_upload_mb}mb",
            theme=gr.themes.Default(font=_FONTS, font_mono=_MONO),
            footer_links=[],
            share=False,
            ssr_mode=False,
            pwa=False,
            prevent_thread_lock=True,
            quiet=True,
            state_session_capacity=200,
        )
    except OSError as exc:
        raise UnknownArgument(f"cannot listen on {host} port {port}; give another --port") from exc
    print(f"flmm: {address}", flush=True)
    if wait:
        try:
            blocks.block_thread()
        finally:
            blocks.close()
    return blocks, address
