"""What an epoch of training heads costs: from the feature cache, without it, and the paper's way.

Arms (`flmm_plugin.bench.training`), all over the same samples, the same heads and the same updates, in one process;
seconds are CPU time of the one thread that works.

``--random`` measures them on a random LLaVA of 8 layers with 576 image tokens, heads of the paper's size and an
official SAM, on pictures of 640 x 480: values mean nothing there, times do.

Three tables: the arms, compression codecs on the very records of the cache, and
sizes for the paper's LMMs, which are arithmetic and say so.

    python benchmarks/training.py --quick
    python benchmarks/training.py --samples 48 --rounds 5
    python benchmarks/training.py --random --sam vit_b --samples 2 --rounds 1 --name training_random
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import os
import platform
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import transformers
from PIL import Image

from flmm_plugin import __version__
from flmm_plugin.bench.timing import NULL, Clock, Times, interleaved
from flmm_plugin.bench.training import ARMS, Epochs
from flmm_plugin.heads.released import RELEASED
from flmm_plugin.training.features import FrozenFeatures
from flmm_plugin.training.recipe import read_recipe
from flmm_plugin.training.samples import TrainingSample, TrainingSet
from flmm_plugin.training.store import ScaledFloat16

# Of the paper's LMMs: image tokens of the (finest) grid; LLaVA-Next's for a picture of 640 x 480.
CELLS = {
    "LLaVA-1.5-7B": 24 * 24, "LLaVA-Next-Vicuna-7B": 48 * 36, "LLaVA-Next-Mistral-7B": 48 * 36,
    "DeepSeekVL-1.3B": 24 * 24, "DeepSeekVL-7B": 24 * 24, "MGM-2B": 24 * 24, "MGM-7B": 24 * 24, "MGM-HD-7B": 48 * 48,
    "HPT-Air": 28 * 28, "HPT-Air-1.5": 32 * 32,
}  # fmt: skip
PHRASE_TOKENS, TEXT_TOKENS, PHRASES = 4, 12, 5


def words_bytes(
    maps: int, cells: int, layers: int, hidden_size: int, phrase_tokens: float, text_tokens: float = 0.0
) -> float:
    """Compute the bytes of one phrase before compression: maps, states of its tokens, share of the selector's states.

    Args:
        maps: Attention maps of a phrase.
        cells: Tokens of the (finest) grid.
        layers: Layers whose states are kept.
        hidden_size: Width of a state.
        phrase_tokens: Tokens of a phrase.
        text_tokens: Tokens of the text that the keyword selector reads, per phrase; 0: it does not learn.
    """
    half, power = 2, 2
    return float(
        maps * (cells * half + power)
        + phrase_tokens * layers * (hidden_size * half + power)
        + text_tokens * (hidden_size * half + power + 1)
    )


def picture_bytes(prompt_dim: int, side: int) -> float:
    """Compute the bytes of one image embedding before compression, ``prompt_dim`` channels of ``side x side``."""
    return float(prompt_dim * (side * side * 2 + 2))


def random_recipe(folder: Path, sam: str, layers: int = 8, hidden: int = 512, heads: int = 8) -> list[str]:
    """Save a random LLaVA with 24 x 24 image tokens; returns the changes of the recipe that train heads for it."""
    from transformers import AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from flmm_plugin.tiny import tiny_path

    processor = AutoProcessor.from_pretrained(tiny_path())
    processor.image_processor.size = {"shortest_edge": 336}
    processor.image_processor.crop_size = {"height": 336, "width": 336}
    processor.patch_size = 14
    vision = CLIPVisionConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, image_size=336,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=32064, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=heads, pad_token_id=processor.tokenizer.pad_token_id,
        bos_token_id=processor.tokenizer.bos_token_id, eos_token_id=processor.tokenizer.eos_token_id,
    )  # fmt: skip
    image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token, image_seq_length=576)
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    refiner = f"heads.refiner={{sam: {sam}, checkpoint: null}}"
    return [f"backbone.pretrained={folder}", refiner, "heads.decoder.base_channels=64"]


def as_large_as_coco(sample: TrainingSample) -> TrainingSample:
    """The sample with its picture and masks at 640 x 480."""

    def masks() -> list[Any]:
        return [
            np.asarray(Image.fromarray(mask).resize((640, 480), Image.Resampling.NEAREST)) for mask in sample.masks()
        ]

    return replace(sample, image_loader=lambda: sample.image_loader().resize((640, 480)), mask_loader=masks)


def measure(epochs: Epochs, rounds: int) -> Times:
    """Seconds of every arm in every round."""
    arms = {arm: lambda arm=arm: epochs.run(arm) for arm in ("cached", *(arm for arm in ARMS if arm != "cached"))}
    return interleaved(arms, rounds, Clock(torch.device("cpu")), "training")


def arm_rows(times: Times, samples: int) -> list[dict[str, Any]]:
    """One row per arm, the null arm (``cached`` once more) last."""
    return [
        {
            "arm": arm,
            "ms a sample": round(1000 * statistics.median(times.seconds[arm]) / samples, 1),
            "times cached": round(times.ratio(arm, "cached").median, 2),
        }
        for arm in (*ARMS, NULL)
    ]


def break_even(times: Times, beside: str) -> float | None:
    """Epochs after which a run that fills a cache and then uses it took no longer than ``beside`` in every epoch.

    After e epochs the one took ``filling + (e - 1) cached``, the other ``e beside``. None: never.
    """
    used = {arm: statistics.median(found) for arm, found in times.seconds.items()}
    saved = used[beside] - used["cached"]
    return round(max(0.0, used["filling"] - used["cached"]) / saved, 2) if saved > 0 else None


def codec_rows(features: Sequence[FrozenFeatures]) -> list[dict[str, Any]]:
    """What codecs make of the float16 values of a cache, upper and lower bytes apart as they are stored."""
    parts = {
        "attention": [ScaledFloat16.of(one.attention, 2).values for one in features],
        "hidden states": [ScaledFloat16.of(torch.cat(one.hidden), 1).values for one in features],
        "the same of a bfloat16 model": [
            ScaledFloat16.of(torch.cat(one.hidden).bfloat16().float(), 1).values for one in features
        ],
        "image embeddings": [ScaledFloat16.of(one.embedding.features, 2).values for one in features if one.embedding],
    }
    zstd = {level: pa.Codec("zstd", compression_level=level) for level in (1, 3, 9)}
    codecs: dict[str, tuple[Callable[[bytes], Any], Callable[[Any, int], Any]]] = {
        **{f"zstd {level}": (codec.compress, codec.decompress) for level, codec in zstd.items()},
        "zlib 6": (lambda data: zlib.compress(data, 6), lambda data, size: zlib.decompress(data)),
        "lzma 1": (lambda data: lzma.compress(data, preset=1), lambda data, size: lzma.decompress(data)),
    }
    rows = []
    for part, tensors in parts.items():
        if not tensors:
            continue
        planes = [
            plane.tobytes()
            for tensor in tensors
            for plane in np.ascontiguousarray(tensor.numpy().reshape(-1, 1).view(np.uint8).T)
        ]
        size = sum(map(len, planes))
        for codec, (pack, unpack) in codecs.items():
            began = time.process_time()
            packed = [pack(plane) for plane in planes]
            middle = time.process_time()
            for one, plane in zip(packed, planes, strict=True):
                unpack(one, len(plane))
            ended = time.process_time()
            rows.append(
                {
                    "part": part,
                    "codec": codec,
                    "times smaller": round(size / sum(map(len, packed)), 3),
                    "MB/s in": round(size / max(middle - began, 1e-9) / 1e6),
                    "MB/s out": round(size / max(ended - middle, 1e-9) / 1e6),
                }
            )
    return rows


def size_rows() -> list[dict[str, Any]]:
    """Bytes before compression for the paper's LMMs: arithmetic on their published numbers, nothing was run."""
    rows = []
    picture = picture_bytes(256, 64)  # every official SAM's embedding
    for one in RELEASED:
        phrase = words_bytes(
            one.facts.attention_maps, CELLS[one.name], one.layers, one.hidden_size, PHRASE_TOKENS, TEXT_TOKENS
        )
        rows.append(
            {
                "LMM": one.name,
                "maps": one.facts.attention_maps,
                "cells": CELLS[one.name],
                "MB a phrase": round(phrase / 1e6, 2),
                "MB a picture": round(picture / 1e6, 2),
                "GB for 1000 pictures": round((PHRASES * phrase + picture) * 1000 / 1e9, 1),
            }
        )
    return rows


def write(folder: Path, name: str, rows: Sequence[dict[str, Any]], comment: str) -> None:
    """A CSV file behind a line that says how it came about."""
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        file.write(f"# {comment}\n")
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write ``NAME.json``, ``NAME.csv``, ``NAME_{cost,codecs}.csv`` and ``training_sizes.csv``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of two samples: does it run at all?")
    parser.add_argument("--sizes", action="store_true", help="only the computed sizes: training_sizes.csv")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--random", action="store_true", help="a random LLaVA of 8 layers instead of the embedded one")
    parser.add_argument("--sam", default="vit_b", choices=["vit_b", "vit_l", "vit_h"], help="with --random")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--name", default="training", help="file name of the results")
    parser.add_argument("changes", metavar="key=value", nargs="*", help="keys of the recipe flmm_tiny to change")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    assumed = f"{PHRASE_TOKENS} tokens a phrase, {TEXT_TOKENS} tokens of text a phrase, {PHRASES} phrases a picture"
    write(args.out, "training_sizes", size_rows(), f"computed by benchmarks/training.py, not measured: {assumed}")
    if args.sizes:
        return 0
    if args.quick:
        args.samples, args.rounds = 2, 1
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        changes = random_recipe(folder / "model", args.sam) if args.random else []
        recipe = read_recipe("flmm_tiny", [f"data.scenes={max(6, args.samples)}", *changes, *args.changes])
        every = list(TrainingSet(recipe))
        step = len(every) / args.samples  # of lists of expressions and of narratives alike
        samples = [every[int(place * step)] for place in range(args.samples)]
        if args.random:
            samples = [as_large_as_coco(sample) for sample in samples]
        epochs = Epochs(recipe, samples, folder)
        checks = epochs.checks()
        times = measure(epochs, args.rounds)
        phrases = sum(len(sample.grounded) for sample in samples)
        words, pictures = epochs.cache.words, epochs.cache.pictures
        assert pictures is not None
        facts: dict[str, Any] = {
            "bytes a phrase": round(words.bytes_on_disk() / phrases),
            "bytes a picture": round(pictures.bytes_on_disk() / len(pictures)),
            "break-even epochs beside no cache": break_even(times, "no cache"),
            "break-even epochs beside the paper's way": break_even(times, "paper"),
        }
        codecs = codec_rows(list(epochs.in_memory.values()))
    provenance = {
        "flmm_plugin": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "device": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "model": f"random LLaVA, 8 x 512, SAM {args.sam}" if args.random else "flmm_tiny",
        "samples": len(samples),
        "phrases": phrases,
        "rounds": args.rounds,
    }
    rows = arm_rows(times, len(samples))
    record = {"provenance": provenance, "checks": checks, "facts": facts, "arms": rows, "seconds": times.seconds}
    (args.out / f"{args.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    said = "measured by benchmarks/training.py: " + ", ".join(f"{key} {value}" for key, value in provenance.items())
    write(args.out, args.name, rows, said)
    write(args.out, f"{args.name}_cost", [{"what": key, "value": value} for key, value in facts.items()], said)
    write(args.out, f"{args.name}_codecs", codecs, said)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(json.dumps({**facts, **checks}))
    near = checks["cached_attention"] < 2**-11 and checks["cached_hidden"] < 2**-11 and checks["paper_attention"] < 1e-4
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
