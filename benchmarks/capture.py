"""What grounding costs beside the plain forward pass, and beside the paper's way of reading attention.

Arms, all over the same random LLaVA, the same picture and the same text, in one process:

- ``plain``: the stock forward pass with its stock (SDPA) kernel.
- ``capture``: the same, with the attention rows and hidden states of the phrases' tokens captured on the side.
- ``eager``: the paper's way, ``attn_implementation="eager"`` with ``output_attentions`` and ``output_hidden_states``,
  rows sliced afterwards. It makes every L x L matrix.
- ``floor``: ``plain`` and SAM's image encoder: what any grounding of this kind pays at least.
- ``grounded``: ``capture``, SAM's image encoder, mask decoder and refiner: the whole of it.

Rounds run all arms one after another in rotating order, so that a slow minute of the machine hits every arm; ratios are
medians of ratios *within* a round. Random weights: times depend on shapes, not on values.

    python benchmarks/capture.py --quick
    python benchmarks/capture.py --layers 32 --hidden 4096 --heads 32 --sam vit_l --device cuda --dtype bfloat16
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from flmm_plugin import __version__
from flmm_plugin.attention import AttentionCapture
from flmm_plugin.geometry import ImageGrid
from flmm_plugin.heads.grounding_heads import GroundingHeads
from flmm_plugin.heads.manifest import HeadsManifest

SMALL_SAM = {"image_size": 256, "patch_size": 16, "encoder_dim": 192, "depth": 6, "heads": 6, "prompt_dim": 128}
ARMS = ("plain", "capture", "eager", "floor", "grounded")


@dataclass(frozen=True)
class Size:
    """Shape of the random LLaVA and of what it reads."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    grid: int
    prompt_tokens: int
    phrases: int
    phrase_tokens: int

    @property
    def length(self) -> int:
        """Sequence length, L."""
        return self.grid**2 + self.prompt_tokens + self.phrases * self.phrase_tokens


class Workload:
    """One picture with its phrases, ready to be run by every arm. Row slots are the phrases' tokens at the end."""

    def __init__(self, size: Size, sam: str, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.size, self.device = size, device
        self.model = random_llava(size).to(device, dtype).eval()
        image_id = self.model.config.image_token_id
        ids = torch.randint(3, image_id, (1, size.length))
        ids[0, 1 : 1 + size.grid**2] = image_id
        self.inputs: dict[str, Tensor] = {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids).to(device),
            "pixel_values": torch.randn(1, 3, size.grid * 14, size.grid * 14).to(device, dtype),
        }
        self.columns = torch.arange(1, 1 + size.grid**2)
        self.rows = torch.arange(size.length - size.phrases * size.phrase_tokens, size.length)
        manifest = HeadsManifest(
            "random", size.layers, size.heads, size.hidden, sam=SMALL_SAM if sam == "small" else sam
        )
        self.heads = GroundingHeads.build(manifest).to(device).eval()
        pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
        self.image = Image.fromarray(pixels)
        self.image_grid = ImageGrid(size.grid, size.grid, 480 / size.grid, 640 / size.grid, 0.0, 0.0, 480, 640)

    def plain(self) -> Tensor:
        """Logits of the last position of the stock forward pass."""
        self.model.set_attn_implementation("sdpa")
        logits: Tensor = self.model(**self.inputs, use_cache=False, logits_to_keep=1).logits
        return logits

    def capture(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[1, 1, v]``, rows ``[t, m, c, h*w]``, hidden states ``[t, m, d]``."""
        self.model.set_attn_implementation("sdpa")
        capture = AttentionCapture(self.model.get_decoder(), [self.rows], [self.columns])
        with capture.active():
            logits = self.model(**self.inputs, use_cache=False, logits_to_keep=1).logits
        return logits, capture.attention(0), capture.hidden(0)

    def eager(self) -> tuple[Tensor, Tensor]:
        """The same rows and hidden states, sliced out of everything."""
        self.model.set_attn_implementation("eager")
        output = self.model(
            **self.inputs, use_cache=False, logits_to_keep=1, output_attentions=True, output_hidden_states=True
        )
        rows, columns = self.rows.to(self.device), self.columns.to(self.device)
        attention = torch.stack([layer[0][:, rows][:, :, columns] for layer in output.attentions]).permute(2, 0, 1, 3)
        hidden = torch.stack([states[0, rows] for states in output.hidden_states[1:]], dim=1)
        return attention, hidden

    def floor(self) -> None:
        """The stock forward pass and SAM's image encoder."""
        self.plain()
        self._encode()

    def grounded(self) -> Tensor:
        """Mask logits ``[n, H, W]`` of all phrases."""
        size = self.size
        _, rows, hidden = self.capture()
        maps = rows.reshape(size.phrases, size.phrase_tokens, size.layers * size.heads, size.grid, size.grid).mean(1)
        states = list(hidden.float().split(size.phrase_tokens))
        logits: Tensor = self.heads(maps, states, self._encode(), self.image_grid).logits
        return logits

    def _encode(self) -> Any:
        refiner = self.heads.mask_refiner
        assert refiner is not None
        refiner.clear_cache()
        return refiner.encode_image(self.image)


def random_llava(size: Size) -> Any:
    """transformers' LLaVA with random weights: a small CLIP tower (patch 14) and a Llama of the asked size."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=size.grid * 14,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=4096,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=8192,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=4095,
        image_seq_length=size.grid**2,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config)


def measure(work: Workload, rounds: int, arms: tuple[str, ...]) -> list[dict[str, Any]]:
    """Time every arm ``rounds`` times after one warm-up; one row per arm."""
    run: dict[str, Callable[[], Any]] = {arm: getattr(work, arm) for arm in arms}
    for arm in arms:
        run[arm]()
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    peak: dict[str, float] = dict.fromkeys(arms, 0.0)
    for number in range(rounds):
        turn = number % len(arms)
        for arm in arms[turn:] + arms[:turn]:
            if work.device.type == "cuda":
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            run[arm]()
            if work.device.type == "cuda":
                torch.cuda.synchronize()
                peak[arm] = max(peak[arm], torch.cuda.max_memory_allocated() / 2**20)
            seconds[arm].append(time.perf_counter() - began)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    against = {"grounded": "floor"}
    return [
        {
            "arm": arm,
            "seconds": round(statistics.median(seconds[arm]), 4),
            "fastest": round(min(seconds[arm]), 4),
            "times_plain": _ratio(seconds[arm], seconds["plain"]),
            "times_floor": _ratio(seconds[arm], seconds["floor"]) if arm in against else "",
            "peak_mib": round(peak[arm]) if work.device.type == "cuda" else "",
        }
        for arm in arms
    ]


def _ratio(these: list[float], those: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(these, those, strict=True)), 3)


def check(work: Workload, arms: tuple[str, ...]) -> dict[str, Any]:
    """The promises, on the very tensors that are timed: equal logits, and rows equal to eager's."""
    plain = work.plain()
    logits, rows, hidden = work.capture()
    facts: dict[str, Any] = {"logits_bit_identical": torch.equal(plain, logits)}
    if "eager" in arms:
        eager_rows, eager_hidden = work.eager()
        facts["rows_max_difference"] = float((rows - eager_rows.float()).abs().max())
        facts["hidden_max_difference"] = float((hidden.float() - eager_hidden.float()).abs().max())
    return facts


def write_csv(path: Path, record: dict[str, Any]) -> None:
    """The arms as CSV, provenance and checks in comment lines above: the form that README's tables are filled from."""
    told = {**record["provenance"], **record["checks"]}
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in told.items())
        arms = record["arms"]
        columns = [name for name in arms[0] if any(arm[name] != "" for arm in arms)]  # memory is a GPU's alone
        writer = csv.DictWriter(file, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(arms)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, write ``capture.json`` and ``capture.csv``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 rounds of a very small model: does it run at all?")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=None, help="fewer than --heads: grouped queries")
    parser.add_argument("--grid", type=int, default=24, help="24 x 24 image tokens, as LLaVA-1.5")
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--phrases", type=int, default=4)
    parser.add_argument("--phrase-tokens", type=int, default=6)
    parser.add_argument("--sam", default="small", choices=["small", "vit_b", "vit_l", "vit_h"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skip-eager", action="store_true", help="where L x L matrices do not fit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="capture", help="file name of the results")
    args = parser.parse_args(argv)
    if args.quick:
        args.layers, args.hidden, args.heads, args.grid, args.rounds = 2, 64, 4, 8, 3
    size = Size(
        layers=args.layers,
        hidden=args.hidden,
        heads=args.heads,
        kv_heads=args.kv_heads or args.heads,
        grid=args.grid,
        prompt_tokens=args.prompt_tokens,
        phrases=args.phrases,
        phrase_tokens=args.phrase_tokens,
    )
    arms = tuple(arm for arm in ARMS if not (arm == "eager" and args.skip_eager))
    device = torch.device(args.device)
    with torch.inference_mode():
        work = Workload(size, args.sam, device, getattr(torch, args.dtype))
        facts = check(work, arms)
        rows = measure(work, args.rounds, arms)
    provenance = {
        "flmm_plugin": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "dtype": args.dtype,
        "kernel": "sdpa",
        "sam": args.sam,
        "rounds": args.rounds,
        **asdict(size),
        "length": size.length,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"provenance": provenance, "checks": facts, "arms": rows}
    (args.out / f"{args.name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_csv(args.out / f"{args.name}.csv", record)
    for row in rows:
        beside = f", {row['times_floor']:.3f} x floor" if row["times_floor"] != "" else ""
        print(f"{row['arm']:9} {row['seconds']:9.4f} s  {row['times_plain']:7.3f} x plain{beside}")
    print(json.dumps(facts))
    return 0 if facts["logits_bit_identical"] else 1


if __name__ == "__main__":
    sys.exit(main())
