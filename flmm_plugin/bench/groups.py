"""Measure in groups; each group returns the rows of its numbers.

Arms of a forward pass: ``plain``, the stock pass; ``capture``, the same with the phrases' attention read beside it;
``paper``, eager attention with every matrix kept. Of a picture: ``floor``, processor, plain pass and SAM's image
encoder, which nothing of this kind can do without; ``grounded``, the whole of it. Every call sees a picture of its own,
so that no cache helps, unless a row says that the picture is encoded already.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_plugin.bench import papers_way
from flmm_plugin.bench.models import Shape, embedded, random_lmm
from flmm_plugin.bench.results import Row
from flmm_plugin.bench.timing import Clock, Meter, interleaved, peak_bytes, process_seconds, watched_captures
from flmm_plugin.capture import capture_passages
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.seal import FrozenSeal

PHRASES = (
    "the large red circle",
    "the small blue square",
    "the green star at the left",
    "the orange triangle in the middle",
)
QUESTION = "Please give me a description of the image."

LLAVA = Shape("llava-8x512")
WIDE = Shape("llava-8x1024", hidden=1024, heads=16)
NEXT = Shape("llava-next-8x512", "llava_next", (672, 672))
QWEN = Shape("qwen2.5-vl-8x512", "qwen2_5_vl", (1512, 1512), kv_heads=2)
VIT_B = Shape("llava-8x512-vit_b", sam="vit_b")
FULL = Shape("llava-7b-vit_l", layers=32, hidden=4096, heads=32, tower=1024, tower_layers=24, sam="vit_l")
TINY = Shape("llava-2x64", layers=2, hidden=64, heads=4, tower=64, tower_layers=1)


@dataclass(frozen=True)
class Bench:
    """Settings that all groups run with.

    Attributes:
        device: Device of the models; the default clock is its own.
        rounds: Rounds of a short measurement; long ones take a part of them.
        quick: Whether very small models stand for all random ones: does it run at all?
        full: Whether the models have the paper's full size.
        dtype: Type of the weights of the models of full size.
    """

    device: torch.device
    rounds: int = 15
    quick: bool = False
    full: bool = False
    dtype: torch.dtype = torch.bfloat16

    @property
    def clock(self) -> Clock:
        """Clock of the device."""
        return Clock(self.device)

    def some(self, share: float) -> int:
        """Return a part of the rounds, at least 2."""
        return max(2, round(self.rounds * share))

    def random(self, shape: Shape) -> GroundedLMM:
        """Make a random model."""
        if self.quick:
            shape = replace(TINY, name=shape.name)
        return random_lmm(shape, self.device, self.dtype if self.full else torch.float32)


class Pictures:
    """Pictures of noise, every one another.

    Args:
        size: Width and height in pixels.
    """

    _numbers = itertools.count(1)  # of all sources

    def __init__(self, size: tuple[int, int]) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)

    def next(self) -> Image.Image:
        """Return a picture that nobody has seen."""
        number = next(self._numbers)
        height, width = self._pixels.shape[:2]
        # Large enough to be another picture for SAM too, which sees it at a lower resolution.
        self._pixels[: height // 8, : width // 8] = (37 * number % 256, 91 * number % 256, number // 256 % 256)
        return Image.fromarray(self._pixels.copy())


def phrases(count: int) -> list[str]:
    """Return a number of different phrases."""
    return [f"{PHRASES[index % 4]}{' again' * (index // 4 % 2)}" for index in range(count)]


def passes(bench: Bench) -> Iterator[Row]:
    """Measure forward passes: the plain one, with capture, and the paper's way; per shape of model and input."""
    if bench.full:
        yield from _passes(bench, bench.random(FULL), FULL, 1, 696, bench.rounds)
        return
    lmm = embedded(bench.device)
    for batch in (1, 4):
        yield from _passes(bench, lmm, Shape("embedded"), batch, 0, bench.rounds)
    for shape, tokens, share in ((LLAVA, 696, 0.5), (WIDE, 696, 0.3), (NEXT, 3000, 0.2), (QWEN, 3000, 0.2)):
        yield from _passes(bench, bench.random(shape), shape, 1, tokens, bench.some(share))


def _passes(bench: Bench, lmm: GroundedLMM, shape: Shape, batch: int, tokens: int, rounds: int) -> Iterator[Row]:
    backbone, merge = lmm.backbone, lmm.merge
    pictures = [Pictures(shape.picture).next()] * batch
    encoded, passage = papers_way.written(lmm, pictures, PHRASES)
    if tokens > encoded.length and not bench.quick:  # a longer prompt, one token a word
        prompt = QUESTION + " image" * (tokens - encoded.length)
        encoded, passage = papers_way.written(lmm, pictures, PHRASES, prompt)
    inputs = {**encoded.grounding_inputs, "position_ids": backbone.positions(encoded.grounding_inputs)}
    passages = [passage] * batch

    def capture() -> list[Any]:
        return [one.maps(backbone) for one in capture_passages(backbone, encoded, passages, merge)]

    def paper() -> list[Any]:
        return papers_way.read(backbone, encoded, passages, last_logits=1)

    arms = {"plain": lambda: backbone.forward_body(inputs), "capture": capture, "paper": paper}
    apart = max(float((ours - theirs[0]).abs().max()) for ours, theirs in zip(capture(), paper(), strict=True))
    name = f"{shape.name}/batch {batch}" if shape.name == "embedded" else shape.name
    note = f"{encoded.length} tokens, {len(passage.tokens)} of them phrases"
    times = interleaved(arms, rounds, bench.clock, name)
    shares = []
    with watched_captures(backbone.decoder, bench.clock) as added:
        for _ in range(rounds):
            before = added()
            whole = bench.clock.time(capture)
            own = added() - before
            shares.append(1 + own / (whole - own))
    scatter = Row.seconds(f"pass/{name}/self", shares, note)
    yield replace(scatter, unit="x", value=statistics.median(shares))
    yield Row.seconds(f"pass/{name}/plain", times.seconds["plain"], note)
    yield Row.ratio(f"pass/{name}/capture", times, "capture", "plain", minima=True, note=note)
    yield Row.ratio(f"pass/{name}/paper", times, "paper", "plain", note=note)
    yield Row(f"pass/{name}/apart", apart, "apart", note="largest difference of a map from the paper's way")
    (captured,) = capture_passages(backbone, encoded, passages, merge)[:1]
    kept = captured.rows.numel() * captured.rows.element_size()
    every = backbone.num_layers * backbone.num_heads * encoded.length**2 * captured.hidden.element_size()
    yield Row(f"pass/{name}/rows", kept, "bytes", note="captured attention, of the tensor")
    yield Row(f"pass/{name}/matrices", every, "bytes", note="the paper's matrices, by arithmetic")
    if shape in (LLAVA, FULL):
        own = backbone.num_layers * backbone.num_heads * len(captured.image.slots)
        yield from _at_7b(kept / own, f"{len(passage.tokens)} tokens of {len(PHRASES)} phrases")


def _at_7b(bytes_each: float, words: str) -> Iterator[Row]:
    """Compute what a sequence takes at 32 layers of 32 heads, from the bytes that were kept per map and image token."""
    for length, image in ((700, 576), (3000, 2704)):
        rows, matrices = bytes_each * 32 * 32 * image, 32 * 32 * length**2 * 2
        note = f"{rows / 1e6:.0f} MB of rows beside {matrices / 1e9:.2f} GB in bfloat16; {words}"
        yield Row(f"memory/7b-{length}", rows / matrices, "part", note=note)


def pictures(bench: Bench) -> Iterator[Row]:
    """Measure whole pictures: grounded over floor, many phrases over one, and where the time goes."""
    if bench.full:
        yield from _over_floor(bench, bench.random(FULL), FULL, (4,), bench.rounds)
        return
    lmm = embedded(bench.device)
    yield from _over_floor(bench, lmm, Shape("embedded"), (1, 8), bench.rounds)
    yield from _encoded_already(bench, lmm, "embedded", bench.some(0.6))
    yield from _stages(bench, lmm, "embedded", (1, 8), bench.some(0.4))
    picture, many = Pictures((640, 480)).next(), phrases(128)
    lmm.ground(picture, many[:8])
    work = [bench.clock.time(lambda: lmm.ground(picture, many)) for _ in range(bench.some(0.2))]
    yield Row.seconds("picture/embedded/128 phrases", work, "picture encoded already")
    large = Pictures((4000, 3000))
    lmm.ground(large.next(), phrases(1))
    work = [bench.clock.time(partial(_ground, lmm, large, phrases(1))) for _ in range(bench.some(0.4))]
    yield Row.seconds("picture/embedded/12 MP", work, "one phrase")
    shown = large.next()
    grown = statistics.median(peak_bytes(lambda: lmm.ground(shown, phrases(8)), bench.device) for _ in range(3))
    yield Row("memory/pixel and phrase", grown / (8 * 12e6), "bytes", rounds=3, note="8 phrases, 12 MP, all results")
    yield from _over_floor(bench, bench.random(LLAVA), LLAVA, (4,), bench.some(0.4))


def official_sam(bench: Bench) -> Iterator[Row]:
    """Measure pictures with SAM ViT-B, whose encoder takes most of the time on a CPU."""
    lmm = bench.random(VIT_B)
    yield from _over_floor(bench, lmm, VIT_B, (4,), bench.some(0.15))
    yield from _encoded_already(bench, lmm, VIT_B.name, bench.some(0.15))
    yield from _stages(bench, lmm, VIT_B.name, (4,), 2)


def _over_floor(bench: Bench, lmm: GroundedLMM, shape: Shape, counts: Sequence[int], rounds: int) -> Iterator[Row]:
    source, backbone = Pictures(shape.picture), lmm.backbone
    for count in counts:
        asked = phrases(count)

        def floor(asked: list[str]) -> None:
            picture = source.next()
            encoded, _ = papers_way.written(lmm, [picture], asked)
            backbone.forward_body(encoded.grounding_inputs)
            _encode(lmm, picture)

        times = interleaved(
            {"floor": partial(floor, asked), "grounded": partial(_ground, lmm, source, asked)}, rounds, bench.clock,
            f"{shape.name}, {count} phrases",
        )  # fmt: skip
        name = f"picture/{shape.name}/{count} phrase{'s' * (count > 1)}"
        yield Row.seconds(f"{name}/floor", times.seconds["floor"])
        yield Row.ratio(f"{name}/grounded", times, "grounded", "floor")


def _ground(lmm: GroundedLMM, source: Pictures, asked: list[str]) -> Any:
    return lmm.ground(source.next(), asked)


def _encode(lmm: GroundedLMM, picture: Image.Image) -> None:
    refiner = lmm.need_heads().mask_refiner
    if refiner is not None:
        refiner.encode_image(picture)


def _encoded_already(bench: Bench, lmm: GroundedLMM, name: str, rounds: int) -> Iterator[Row]:
    picture = Pictures((640, 480)).next()
    arms = {"1": lambda: lmm.ground(picture, phrases(1)), "8": lambda: lmm.ground(picture, phrases(8))}
    times = interleaved(arms, rounds, bench.clock, f"{name}, encoded already")
    yield Row.seconds(f"picture/{name}/1 encoded", times.seconds["1"])
    yield Row.ratio(f"picture/{name}/8 over 1 encoded", times, "8", "1")


def _stages(bench: Bench, lmm: GroundedLMM, name: str, counts: Sequence[int], rounds: int) -> Iterator[Row]:
    """Measure the parts of one picture: medians over rounds."""
    heads, source = lmm.need_heads(), Pictures((640, 480))
    parts: dict[str, Any] = {"LMM": lmm.backbone.model, "U-Net": heads.mask_decoder}
    if heads.mask_refiner is not None:
        sam = heads.mask_refiner.sam
        parts |= {
            "SAM encoder": sam.image_encoder,
            "SAM prompts": sam.prompt_encoder,
            "SAM decoder": sam.mask_decoder,
        }
    for count in counts:
        found: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            with _metered(bench.clock, parts) as meters, watched_captures(lmm.backbone.decoder, bench.clock) as added:
                encode = meters.setdefault("processor", Meter(bench.clock))
                lmm.encode = encode.around(type(lmm).encode.__get__(lmm))  # type: ignore[method-assign]
                try:
                    whole = bench.clock.time(partial(_ground, lmm, source, phrases(count)))
                finally:
                    del lmm.encode
                seconds = {part: meter.seconds for part, meter in meters.items()}
                seconds["capture"] = added()
            seconds["LMM"] -= seconds["capture"]
            seconds["rest"] = whole - sum(seconds.values())
            if number:  # the first one warms up
                for part, one in {**seconds, "all": whole}.items():
                    found.setdefault(part, []).append(one)
        for part, values in found.items():
            scatter = Row.seconds(f"stage/{name}/{count}/{part}", values)
            yield replace(scatter, value=statistics.median(values))


@contextmanager
def _metered(clock: Clock, modules: Mapping[str, Any]) -> Iterator[dict[str, Meter]]:
    """Time the calls of modules."""
    meters = {name: Meter(clock) for name in modules}
    for name, module in modules.items():
        module.forward = meters[name].around(module.forward)
    try:
        yield meters
    finally:
        for module in modules.values():
            del module.forward


def chats(bench: Bench) -> Iterator[Row]:
    """Measure a chat of 64 tokens, and the same with its words grounded, over the chat alone."""
    lmm, source = embedded(bench.device), Pictures((640, 480))
    arms = {
        "chat": lambda: _chat(lmm.chat, source, 64),
        "without SAM": lambda: _chat(lmm.grounded_chat, source, 64, refine=False),
        "with SAM": lambda: _chat(lmm.grounded_chat, source, 64),
    }
    times = interleaved(arms, bench.some(0.6), bench.clock, "chat")
    yield Row.seconds("chat/alone", times.seconds["chat"], "64 tokens")
    for arm in ("without SAM", "with SAM"):
        yield Row.ratio(f"chat/{arm}", times, arm, "chat", minima=True, note="64 tokens")


def _chat(ask: Callable[..., Any], source: Pictures, tokens: int, **options: Any) -> Any:
    return ask(_scene(source), QUESTION, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **options)


def _scene(source: Pictures) -> Image.Image:
    """Return a picture with two things to speak of, and a corner that makes it new."""
    picture = Image.new("RGB", (640, 480), (120, 120, 120))
    picture.paste((220, 30, 30), (80, 120, 240, 280))
    picture.paste((30, 60, 220), (380, 200, 560, 380))
    picture.paste(source.next().crop((0, 0, 80, 60)), (0, 0))
    return picture


def referring(bench: Bench) -> Iterator[Row]:
    """Measure referring segmentation, documents to masks JSON as lmms-eval asks for them, beside the paper's loop.

    Values above 1 say how many times faster it is than the paper's loop: a picture a call, and an expression a call.
    """
    asked = phrases(3)
    shapes = [("embedded", embedded(bench.device), 0.4), (LLAVA.name, bench.random(LLAVA), 0.2)]
    for name, lmm, share in shapes:
        source = Pictures((640, 480))
        with tempfile.TemporaryDirectory() as folder:
            loop = _Loop(lmm, Path(folder))

            arms = {
                "picture": partial(loop.ask, source, [asked]),
                "paper, picture": partial(_papers_loop, lmm, source, asked, 3),
                "sentence": partial(loop.ask, source, [[one] for one in asked]),
                "paper, sentence": partial(_papers_loop, lmm, source, asked, 1),
            }
            times = interleaved(arms, bench.some(share), bench.clock, f"{name}, referring")
        for unit in ("picture", "sentence"):
            yield Row.ratio(f"res/{name}/{unit}", times, f"paper, {unit}", unit, note="3 expressions a picture")


def _papers_loop(lmm: GroundedLMM, source: Pictures, asked: Sequence[str], unit: int) -> None:
    """Ground expressions of a picture as the paper's code does, so many a call."""
    picture = source.next()
    for start in range(0, len(asked), unit):
        papers_way.ground(lmm, picture, asked[start : start + unit])


class _Loop:
    """This package's model object in lmms-eval, around an LMM that is loaded already.

    Args:
        lmm: A loaded `GroundedLMM` that answers.
        folder: Folder for the pictures that documents name.
    """

    def __init__(self, lmm: Any, folder: Path) -> None:
        from loguru import logger

        from flmm_plugin.adapters.answering.defaults import Defaults
        from flmm_plugin.adapters.lmms_eval.model import FlmmModel

        class Loaded(FlmmModel):
            defaults = Defaults("flmm_bench", "bench")

            def load(self, arguments: Any, device: str) -> Any:
                return lmm

            def _take_heads(self) -> None:
                """They are loaded."""

        logger.remove()
        self._model: Any = Loaded(device="cpu")
        self._folder = folder
        self._numbers = itertools.count()

    def ask(self, source: Pictures, documents: Sequence[list[str]]) -> None:
        """Answer documents about a picture that is new."""
        self.run(source.next(), documents)

    def run(self, picture: Image.Image, documents: Sequence[list[str]]) -> list[Any]:
        """Answer documents about one picture, each with phrases of its own."""
        path = self._folder / f"{next(self._numbers)}.bmp"
        picture.save(path)
        size = {"height": picture.height, "width": picture.width}
        self._model.task_dict["bench"] = {
            "test": [{"image_path": str(path), "expressions": one, **size} for one in documents]
        }
        options = {"flmm_ground": True, "do_sample": False}
        asked = [
            SimpleNamespace(args=("", dict(options), lambda doc: [], number, "bench", "test"), metadata={})
            for number in range(len(documents))
        ]
        return list(self._model.generate_until(asked))


def seals(bench: Bench) -> Iterator[Row]:
    """Measure how fast the seal on the frozen weights is made."""
    model = bench.random(WIDE).backbone.model
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    used, walls = [], []
    for _ in range(bench.some(0.4)):
        began, wall = time.process_time(), time.perf_counter()
        FrozenSeal(model)
        used.append(size / (time.process_time() - began) / 1e9)
        walls.append(size / (time.perf_counter() - wall) / 1e9)
    note = f"{size / 1e9:.2f} GB"
    yield Row("seal/a core", max(used), "GB/s", rounds=len(used), note=f"{note}, per second of CPU time")
    yield Row("seal/wall", max(walls), "GB/s", rounds=len(walls), note=f"{note}, by the wall clock")


def starts(bench: Bench) -> Iterator[Row]:
    """Measure what it takes until tasks can be listed: CPU seconds of ``lmms_eval`` over those of ``lmms-eval``."""
    scripts = Path(sys.executable).parent
    seconds: dict[str, list[float]] = {"lmms-eval": [], "lmms_eval": []}
    for _ in range(2):
        for name, found in seconds.items():
            found.append(process_seconds([str(scripts / name), "tasks", "list"]))
    stock, own = min(seconds["lmms-eval"]), min(seconds["lmms_eval"])
    yield Row("start/stock", stock, "s", rounds=2)
    yield Row("start/ours over stock", own / stock, "x", rounds=2, note="fastest of two, `tasks list`")


def trainings(bench: Bench) -> Iterator[Row]:
    """Measure a training sample without a cache, read and learnt, over the paper's way of reading."""
    from flmm_plugin.bench.training import embedded_epochs

    with tempfile.TemporaryDirectory() as folder:
        epochs = embedded_epochs(Path(folder), samples=4)
        arms = {arm: partial(epochs.run, arm) for arm in ("no cache", "paper", "heads")}
        times = interleaved(arms, bench.some(0.3), bench.clock, "training")
    yield Row.ratio("training/uncached over paper", times, "no cache", "paper", note="embedded, 4 samples a round")
    yield Row.ratio("training/heads alone over paper", times, "heads", "paper", note="what no way of reading avoids")


def growth(bench: Bench) -> Iterator[Row]:
    """Measure how time grows with phrases, answer tokens, pixels, documents and processes."""
    lmm, clock = embedded(bench.device), bench.clock
    picture = Pictures((640, 480)).next()
    for count in (1, 2, 4, 8, 16, 32, 64, 128):
        work = [clock.time(partial(lmm.ground, picture, phrases(count))) for _ in range(4)][1:]
        yield Row.seconds(f"growth/phrases/{count}", work)
    source = Pictures((640, 480))
    for tokens in (16, 32, 64, 128, 256, 512):
        for name, ask in (("chat", lmm.chat), ("grounded", lmm.grounded_chat)):
            work = [clock.time(partial(_chat, ask, source, tokens)) for _ in range(2)]
            yield Row.seconds(f"growth/answer {name}/{tokens}", work)
    for width, height in ((365, 274), (640, 480), (1155, 866), (2000, 1500), (4000, 3000), (5657, 4243)):
        large = Pictures((width, height))
        work = [clock.time(partial(_ground, lmm, large, phrases(1))) for _ in range(4)][1:]
        yield Row.seconds(f"growth/pixels/{width * height}", work)
    with tempfile.TemporaryDirectory() as folder:
        loop = _Loop(lmm, Path(folder))
        found = lmm.ground(picture, phrases(1))
        grounds = lmm.ground_many
        for count in (10, 100, 1000, 10000):
            # The model's answers are there already: what the loop itself takes, and whether it stays linear.
            lmm.ground_many = lambda images, *rest, **more: [found] * len(images)  # type: ignore[method-assign]
            try:
                work = [clock.time(partial(loop.run, picture, [phrases(1)] * count))]
            finally:
                lmm.ground_many = grounds  # type: ignore[method-assign]
            yield Row.seconds(f"growth/documents/{count}", work)
    for processes in (1, 2):
        for limit in (4, 40):
            seconds = _run_of(processes, limit)
            yield Row(f"growth/processes {processes}/{limit}", seconds / processes, "s", rounds=1)


def _run_of(processes: int, limit: int) -> float:
    """Return CPU seconds of a whole run of the embedded model on several processes."""
    words = [
        "--model", "flmm_tiny", "--tasks", "flmm_tiny_refcoco", "--limit", str(limit), "--model_args", "device=cpu",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    on_cpu = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        return process_seconds([*launch, "-m", "lmms_eval", *words, "--output_path", place], cwd=place, env=on_cpu)


#: Groups by name, in the order in which they run.
GROUPS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "passes": passes,
    "pictures": pictures,
    "official_sam": official_sam,
    "chats": chats,
    "referring": referring,
    "seals": seals,
    "starts": starts,
    "trainings": trainings,
    "growth": growth,
}
