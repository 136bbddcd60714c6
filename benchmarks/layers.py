"""Measure the rows of each kind of layer beside the layer's own kernel: how exact they are, and what they cost.

For every kind transformers' own torch kernel runs on random inputs, and the rows of the last tokens are computed from
the same inputs:

- ``error``: largest difference of rows times values from the kernel's output at these tokens, float32.
- ``spread``: the same difference between the kernel's chunked and its token-by-token form, where it has both.
- ``time``: CPU time of the rows in parts of the kernel's; median over rounds, each round runs kernel, rows, kernel.
- ``control``: the second kernel run in parts of the first.

    python benchmarks/layers.py                 measures, then writes benchmarks/results/layers.csv and docs/layers.md
    python benchmarks/layers.py --render        the table of docs/layers.md alone, from the committed CSV
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.mamba2 import modeling_mamba2 as mamba2
from transformers.models.minimax.configuration_minimax import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen

from flmm_plugin.delta_rule import decayed_rows
from flmm_plugin.token_mixers import KERNELS

ROOT = Path(__file__).resolve().parents[1]
CSV = ROOT / "benchmarks" / "results" / "layers.csv"
PAGE = ROOT / "docs" / "layers.md"
BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
COLUMNS = ("layer", "tokens", "rows", "heads", "size", "error", "scale", "spread", "time", "control")


@dataclass(frozen=True)
class Size:
    """Shape of a layer and of what is read from it."""

    tokens: int
    rows: int
    heads: int
    size: int


@dataclass(frozen=True)
class Case:
    """One kind of layer on random inputs.

    Attributes:
        kernel: Runs it; the output is ``[1, l, c, v]``.
        rows: Computes the weights of the last tokens, ``[1, c, t, l]``.
        value: Values of all tokens, ``[1, c, l, v]``.
        other: The kernel's other form, if it has one.
        skip: What the kernel adds to its output beside the weighted sum, ``[1, l, c, v]``.
    """

    kernel: Callable[[], Tensor]
    rows: Callable[[], Tensor]
    value: Tensor
    other: Callable[[], Tensor] | None = None
    skip: Tensor | None = None


def delta_rule(size: Size, by_channel: bool) -> Case:
    """Gated DeltaNet, or Kimi Delta Attention whose channels decay each by itself."""
    query, key, value = (torch.randn(1, size.tokens, size.heads, size.size) for _ in range(3))
    beta = torch.randn(1, size.tokens, size.heads).sigmoid()
    gate = -F.softplus(torch.randn(1, size.tokens, size.heads, *([size.size] if by_channel else []))) * 0.1
    chunked = kimi.chunk_kimi_delta_attention if by_channel else qwen.torch_chunk_gated_delta_rule
    stepwise = kimi.recurrent_kimi_delta_attention if by_channel else qwen.torch_recurrent_gated_delta_rule
    call = {"query": query, "key": key, "value": value, "g": gate, "beta": beta, "use_qk_l2norm_in_kernel": True}

    def run(kernel: Callable[..., tuple[Tensor, Tensor | None]]) -> Tensor:
        return kernel(**call, initial_state=None, output_final_state=False)[0]

    name = chunked.__name__
    return Case(
        lambda: run(chunked), lambda: _last_rows(name, call, size), value.transpose(1, 2), lambda: run(stepwise)
    )


def state_space(size: Size) -> Case:
    """Mamba-2: heads in groups of eight share B and C."""
    groups = max(1, size.heads // 8)
    value = torch.randn(1, size.tokens, size.heads, size.size)
    pair = [torch.randn(1, size.tokens, groups, size.size) * size.size**-0.5 for _ in range(2)]
    call = {
        "hidden_states": value,
        "dt": torch.randn(1, size.tokens, size.heads) - 2.0,
        "A": -torch.rand(size.heads) - 0.1,
        "B": pair[0],
        "C": pair[1],
        "D": torch.rand(size.heads),
        "dt_bias": torch.zeros(size.heads),
        "dt_softplus": True,
        "dt_limit": (0.0, float("inf")),
    }
    skip = value * call["D"][:, None]
    return Case(
        lambda: mamba2.mamba2_chunk_scan(**call, chunk_size=256),
        lambda: _last_rows("mamba2_chunk_scan", call, size),
        value.transpose(1, 2),
        skip=skip,
    )


def lightning(size: Size) -> Case:
    """Lightning attention; its kernel is written out in the layer, so the layer runs up to its norm."""
    config = MiniMaxConfig(
        hidden_size=size.heads * size.size,
        num_attention_heads=size.heads,
        head_dim=size.size,
        num_hidden_layers=4,
        layer_types=["linear_attention"] * 4,
    )
    module = MiniMaxLightningAttention(config, layer_idx=1).eval()
    kept: list[Tensor] = []
    module.norm.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    mixed = torch.randn(1, size.tokens, size.heads * size.size * 3) * size.size**-0.5
    nothing = torch.zeros(1, size.tokens, 1)
    # Projections are not the kernel: what they would give is given, and nothing is projected behind it.
    module.qkv_proj.forward = lambda _: mixed
    module.output_gate.forward = lambda _: nothing
    module.out_proj.forward = lambda states: states[..., :1]
    query, key, value = (
        one.transpose(1, 2) for one in F.silu(mixed).reshape(1, size.tokens, size.heads, -1).split(size.size, dim=-1)
    )

    def run() -> Tensor:
        kept.clear()
        module(nothing, position_embeddings=None, attention_mask=None)
        return kept[0].reshape(1, size.tokens, size.heads, size.size)

    def rows() -> Tensor:
        beta = torch.ones(1, size.heads, size.tokens)
        gate = -module.slope_rate.float().reshape(1, -1, 1).expand_as(beta)
        return decayed_rows(query[:, :, -size.rows :], key, beta, gate, _places(size))

    return Case(run, rows, value)


KINDS: dict[str, Callable[[Size], Case]] = {
    "gated delta rule (Qwen3.5, Qwen3-Next)": lambda size: delta_rule(size, by_channel=False),
    "delta rule, a gate per channel (Kimi Linear, GLM-5-next)": lambda size: delta_rule(size, by_channel=True),
    "Mamba-2 (Nemotron-H, Granite 4, Falcon-H1)": state_space,
    "lightning attention (MiniMax)": lightning,
}


def _places(size: Size) -> Tensor:
    return torch.arange(size.tokens - size.rows, size.tokens)[None]


def _last_rows(name: str, call: dict[str, object], size: Size) -> Tensor:
    given = KERNELS[name](call)
    query = given.prepared(given.query[:, :, -size.rows :])
    return given.closed_form(query, given.key, given.beta, given.gate, _places(size))


def measured(kind: str, size: Size, rounds: int) -> dict[str, str]:
    """One line of the table."""
    torch.manual_seed(0)
    case = KINDS[kind](size)
    output = case.kernel()
    expected = output if case.skip is None else output - case.skip
    expected = expected.transpose(1, 2)[:, :, -size.rows :]
    error = (case.rows() @ case.value - expected).abs().max()
    spread = None if case.other is None else (case.other() - output)[:, -size.rows :].abs().max()
    times, controls = [], []
    for _ in range(rounds):
        first, own, second = (_seconds(run) for run in (case.kernel, case.rows, case.kernel))
        times.append(own * 2 / (first + second))
        controls.append(second / first)
    return {
        "layer": kind,
        "tokens": str(size.tokens),
        "rows": str(size.rows),
        "heads": str(size.heads),
        "size": str(size.size),
        "error": f"{error:.1e}",
        "scale": f"{expected.abs().max():.2g}",
        "spread": "" if spread is None else f"{spread:.1e}",
        "time": f"{statistics.median(times):.2f}",
        "control": f"{statistics.median(controls):.2f}",
    }


def _seconds(run: Callable[[], Tensor]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def as_csv(rows: Sequence[dict[str, str]], rounds: int) -> str:
    """The result file: what it was measured with, then the lines."""
    out = io.StringIO()
    out.write(f"# transformers {transformers.__version__}, torch {torch.__version__}, one thread of a CPU\n")
    out.write(f"# ({platform.machine()}), float32, {rounds} rounds\n")
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def table(content: str) -> str:
    """The result file as a table."""
    lines = content.splitlines()
    notes = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    shown = [
        "| layer kind | tokens, rows | error against the kernel | largest output | kernel's own spread "
        "| time against the kernel | control |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (row["layer"], f"{row['tokens']}, {row['rows']}", row["error"], row["scale"], row["spread"] or "-")
        shown.append(f"| {' | '.join(cells)} | {row['time']} x | {row['control']} x |")
    return "\n".join([*shown, "", f"Measured with {notes}."])


def render() -> None:
    """Write the table of the page from the committed CSV."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    content = f"{before}{BEGIN}\n\n{table(CSV.read_text(encoding='utf-8'))}\n\n{END}{after}"
    PAGE.write_text(content, encoding="utf-8")


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--size", type=int, default=128, help="of keys and values")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--render", action="store_true", help="only make the table from the CSV")
    parser.add_argument("--out", type=Path, default=CSV, help="another file: the page is left alone")
    args = parser.parse_args(argv)
    if not args.render:
        torch.set_num_threads(1)
        size = Size(args.tokens, args.rows, args.heads, args.size)
        lines = [measured(kind, size, args.rounds) for kind in KINDS]
        args.out.write_text(as_csv(lines, args.rounds), encoding="utf-8")
        print(table(args.out.read_text(encoding="utf-8")))
    if args.out == CSV:
        render()
    return 0


if __name__ == "__main__":
    sys.exit(main())
