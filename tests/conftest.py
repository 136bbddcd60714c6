"""What every test runs under: offline, on few threads, and tiers that say how to run what they skip."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Apart from the user's own: what tests measure is no basis for plans. Scenes stay there from run to run.
os.environ.setdefault("FLMM_CACHE", str(Path(__file__).resolve().parents[1] / "build" / "test-cache"))

import numpy as np
import pytest
from PIL import Image


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the tiers that were not asked for by name (``-m``) or that this machine cannot run."""
    asked = config.getoption("markexpr")
    for item in items:
        if "gpu" in item.keywords and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device: run `pytest -m gpu` on a machine with one"))
        if "weights" in item.keywords and "FLMM_WEIGHTS" not in os.environ:
            item.add_marker(
                pytest.mark.skip(reason="needs real weights: set FLMM_WEIGHTS to their folder, `pytest -m weights`")
            )
        if "slow" in item.keywords and "slow" not in asked:
            item.add_marker(pytest.mark.skip(reason="takes longer than ten seconds: run `pytest -m slow`"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Any]:
    """A user with an empty home, and servers on this machine that play the real ones (`tests.loopback.world.World`)."""
    from tests.loopback.world import World

    with World(tmp_path / "user") as world:
        yield world


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium (`tests.browser.Browser`)."""
    from tests.browser import Browser

    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("FLMM_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs a browser: install chromium, or set FLMM_CHROMIUM to one")
    started = Browser(found, tmp_path_factory.mktemp("chromium"))
    yield started
    started.close()


# --- tiny real models ----------------------------------------------------------------------------------------------
# transformers' own LLaVA classes with random weights and a real processor, saved and loaded as any checkpoint is.

_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_SENTENCES = [
    "USER: What is in the image? Please give me a description of the image. ASSISTANT: a man rides a brown horse.",
    "the dog and the cat sit on a red sofa near the window, on the left of the big blue table.",
]


@dataclass(frozen=True)
class LlavaShape:
    """A variant of the tiny LLaVA; 4 x 4 image tokens of 14 pixels, 3 layers x 4 heads, hidden size 64."""

    kv_heads: int = 4
    processor: str = "crop"  # crop | pad | squash

    def save(self, folder: Path) -> Path:
        import torch
        from transformers import (
            CLIPImageProcessor,
            CLIPVisionConfig,
            LlamaConfig,
            LlavaConfig,
            LlavaForConditionalGeneration,
            LlavaImageProcessor,
            LlavaProcessor,
        )

        tokenizer = tiny_tokenizer()
        text = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=self.kv_heads, max_position_embeddings=2048, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
            initializer_range=0.2,  # peaked attention: a wrong row shows
        )  # fmt: skip
        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=56,
            patch_size=14, projection_dim=16,
        )  # fmt: skip
        image_id = tokenizer.convert_tokens_to_ids("<image>")
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_id, image_seq_length=16)
        )
        # A random model may say the placeholder, which no real one does.
        model.generation_config.bad_words_ids = [[image_id]]
        square = {"height": 56, "width": 56}
        if self.processor == "crop":
            pictures = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=square)
        elif self.processor == "pad":
            pictures = LlavaImageProcessor(size={"shortest_edge": 56}, crop_size=square, do_pad=True)
        else:
            pictures = CLIPImageProcessor(size=square, do_center_crop=False)
        processor = LlavaProcessor(
            pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default",
            num_additional_image_tokens=1, chat_template=_TEMPLATE,
        )  # fmt: skip
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder


def tiny_tokenizer() -> Any:
    """Byte-level BPE: any text encodes, and offsets work."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=["<pad>", "<s>", "</s>", "<image>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    backend.train_from_iterator(_SENTENCES * 20, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def llava_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints on disk: ``mha`` (centre crop), ``gqa`` (centre crop, 2 of 4 key heads), ``pad`` and ``squash``."""
    shapes = {
        "mha": LlavaShape(),
        "gqa": LlavaShape(kv_heads=2),
        "pad": LlavaShape(processor="pad"),
        "squash": LlavaShape(processor="squash"),
    }
    return {name: shape.save(tmp_path_factory.mktemp(f"llava_{name}")) for name, shape in shapes.items()}


@pytest.fixture(scope="session")
def load_llava(llava_folders: dict[str, Path]) -> Callable[..., Any]:
    """``load_llava(name, **options)``: the backbone of a folder, loaded once per set of options; leave it unchanged."""
    from flmm_plugin.backbones import load_backbone

    loaded: dict[tuple[Any, ...], Any] = {}

    def load(name: str = "mha", **options: Any) -> Any:
        key = (name, *sorted(options.items()))
        if key not in loaded:
            loaded[key] = load_backbone(llava_folders[name], device="cpu", **options)
        return loaded[key]

    return load


@pytest.fixture(scope="session")
def noise_image() -> Callable[..., Image.Image]:
    """``noise_image(width, height, seed)``: a picture that no two seeds share."""

    def make(width: int = 100, height: int = 60, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


# --- a RefCOCO folder ----------------------------------------------------------------------------------------------
# Written here byte for byte as the refer API lays it out, so that its reader is not tested with its own writer.


@dataclass(frozen=True)
class ReferFolder:
    """A data root with a few pictures of rectangles.

    Attributes:
        root: What `FLMM_DATA` would be.
        boxes: By annotation id: x0, y0, x1, y1 of the object, the last column and row exclusive.
        sizes: By image id: height, width.
    """

    root: Path
    boxes: dict[int, tuple[int, int, int, int]]
    sizes: dict[int, tuple[int, int]]

    def mask(self, ann_id: int, image_id: int) -> Any:
        x0, y0, x1, y1 = self.boxes[ann_id]
        mask = np.zeros(self.sizes[image_id], dtype=bool)
        mask[y0:y1, x0:x1] = True
        return mask


@pytest.fixture
def refer_folder(tmp_path: Path) -> Callable[..., ReferFolder]:
    """``refer_folder(name, by, annotations=..., pictures=...)``: 5 refs in 4 pictures; val 3, testA 1, test 1, train 0.

    Every ref has two sentences. Pictures are 100 x 60, 60 x 100, 80 x 80 and 50 x 40 (width x height).
    """
    import json
    import pickle

    def write(
        name: str = "refcoco", by: str = "unc", annotations: str = "coco/{name}", pictures: str = "coco/train2014"
    ) -> ReferFolder:
        sizes = {11: (60, 100), 12: (100, 60), 13: (80, 80), 14: (40, 50)}
        boxes = {
            101: (10, 5, 40, 30), 102: (60, 20, 90, 55), 103: (5, 50, 50, 90), 104: (0, 0, 80, 40), 105: (5, 5, 9, 9),
        }  # fmt: skip
        of_image = {101: 11, 102: 11, 103: 12, 104: 13, 105: 14}
        split = {101: "val", 102: "val", 103: "val", 104: "testA", 105: "test"}
        folder, shown = tmp_path / annotations.format(name=name), tmp_path / pictures
        folder.mkdir(parents=True, exist_ok=True)
        shown.mkdir(parents=True, exist_ok=True)
        instances: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
        for image_id, (height, width) in sizes.items():
            file_name = f"COCO_train2014_{image_id:012d}.jpg"
            pixels = np.full((height, width, 3), 40, dtype=np.uint8)
            for ann_id, (x0, y0, x1, y1) in boxes.items():
                if of_image[ann_id] == image_id:
                    pixels[y0:y1, x0:x1] = (200, ann_id % 256, 60)
            Image.fromarray(pixels).save(shown / file_name)
            instances["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        refs = []
        for number, (ann_id, (x0, y0, x1, y1)) in enumerate(boxes.items()):
            corners = [x0, y0, x1, y0, x1, y1, x0, y1]
            instances["annotations"].append(
                {"id": ann_id, "image_id": of_image[ann_id], "category_id": 1, "segmentation": [corners], "iscrowd": 0}
            )
            typed = [f"The {number} Thing!", f"thing no. {number}, again"]
            sentences = [
                {"sent_id": 2 * number + at, "raw": raw, "sent": raw.lower().strip("!"), "tokens": raw.lower().split()}
                for at, raw in enumerate(typed)
            ]
            refs.append(
                {
                    "ref_id": number, "ann_id": ann_id, "image_id": of_image[ann_id], "category_id": 1,
                    "file_name": f"COCO_train2014_{of_image[ann_id]:012d}_{number}.jpg", "split": split[ann_id],
                    "sent_ids": [2 * number, 2 * number + 1], "sentences": sentences,
                }
            )  # fmt: skip
        (folder / "instances.json").write_text(json.dumps(instances))
        (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
        return ReferFolder(tmp_path, boxes, sizes)

    return write


@pytest.fixture
def real_refer() -> Path:
    """The sample of real COCO pictures and polygons, where this checkout has one."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "real" / "refer"
    root = Path(os.environ.get("FLMM_REAL_SAMPLE", beside))
    if not root.is_dir():
        pytest.skip("needs real annotations and pictures in RefCOCO's layout: set FLMM_REAL_SAMPLE to their folder")
    return root


# --- a folder of panoptic narratives -------------------------------------------------------------------------------
# Written here field by field as the benchmark lays it out, so that its reader is not tested with its own writer.


@dataclass(frozen=True)
class PngFolder:
    """A data root with two pictures, 20 x 30 (height x width), and what is where in both.

    Attributes:
        root: What `FLMM_DATA` would be.
        narratives, panoptic: The two annotation files.
        maps, pictures: Folders.
        areas: By segment id: rows and columns, ends exclusive; 5 is the rest of the picture.
    """

    root: Path
    narratives: Path
    panoptic: Path
    maps: Path
    pictures: Path
    areas: dict[int, tuple[int, int, int, int]]

    def mask(self, *ids: int) -> Any:
        found = np.zeros((20, 30), dtype=bool)
        taken = np.zeros((20, 30), dtype=bool)
        for number, (y0, y1, x0, x1) in self.areas.items():
            taken[y0:y1, x0:x1] = True
            if number in ids:
                found[y0:y1, x0:x1] = True
        return found | ~taken if 5 in ids else found

    def change(self, path: Path, how: Callable[[Any], Any]) -> None:
        """Rewrite a JSON file after `how` changed its content in place."""
        import json

        content = json.loads(path.read_text())
        how(content)
        path.write_text(json.dumps(content))


@pytest.fixture
def png_folder(tmp_path: Path) -> Callable[..., PngFolder]:
    """``png_folder()``: three narratives of the split val, one of which names nothing; 5 phrases in the others.

    Ids need one, two and three bytes: 5 (stuff), 300 and 70000 (things).
    """
    import json

    def write(
        annotations: str = "coco/annotations",
        maps: str = "coco/annotations/panoptic_val2017",
        pictures: str = "coco/val2017",
    ) -> PngFolder:
        folders = [tmp_path / name for name in (annotations, maps, pictures)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        areas = {300: (0, 10, 0, 10), 70000: (0, 10, 20, 30)}
        segments = np.full((20, 30), 5)
        pixels = np.full((20, 30, 3), 90, dtype=np.uint8)
        for number, (y0, y1, x0, x1) in areas.items():
            segments[y0:y1, x0:x1] = number
            pixels[y0:y1, x0:x1] = (200, 30, 30)
        colors = np.stack([segments % 256, segments // 256 % 256, segments // 65536], axis=-1).astype(np.uint8)
        content: dict[str, Any] = {
            "images": [], "annotations": [],
            "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 200, "name": "grass", "isthing": 0}],
        }  # fmt: skip
        for image_id in (139, 785):
            Image.fromarray(colors).save(folders[1] / f"{image_id:012d}.png")
            Image.fromarray(pixels).save(folders[2] / f"{image_id:012d}.jpg")
            content["images"].append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": 20, "width": 30})
            infos = [{"id": number, "category_id": 200 if number == 5 else 1} for number in (5, 300, 70000)]
            content["annotations"].append(
                {"image_id": image_id, "file_name": f"{image_id:012d}.png", "segments_info": infos}
            )

        def told(image_id: Any, *pieces: tuple[str, list[str], bool]) -> dict[str, Any]:
            segments = [
                {"utterance": text, "segment_ids": ids, "noun": bool(ids), "plural": plural}
                for text, ids, plural in pieces
            ]
            return {"image_id": image_id, "annotator_id": "4", "caption": "...", "segments": segments}

        narratives = [
            told("139", ("There is ", [], False), ("a brown cat", ["300"], False), (" and ", [], False),
                 ("another", ["70000"], False), (", so ", [], False), ("two cats", ["300", "70000"], True),
                 (" on ", [], False), ("grass", ["5"], False), (".", [], False)),
            told("785", ("Nothing to see.", [], False)),
            told(785, ("Green grass", ["5"], False), (" only.", [], False)),
        ]  # fmt: skip
        paths = folders[0] / "png_coco_val2017.json", folders[0] / "panoptic_val2017.json"
        paths[0].write_text(json.dumps(narratives))
        paths[1].write_text(json.dumps(content))
        return PngFolder(tmp_path, paths[0], paths[1], folders[1], folders[2], areas)

    return write
