"""Write the demo's page: the numbers of both runs, pictures with masks, attention maps, and the controls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from flmm_plugin.adapters.lmms_eval.agreement import Agreement
from flmm_plugin.datasets.refer import ORIENTATION, ReferDataset, ReferItem
from flmm_plugin.figures import mask_layer
from flmm_plugin.grounded_lmm import GroundedLMM
from flmm_plugin.images import open_image
from flmm_plugin.reports.attention_figures import contact_sheet
from flmm_plugin.reports.gallery import Card, Cards, Section, Table, Text, write_page
from flmm_plugin.tasks.metrics.segmentation import iou_counts

PICTURES = 12
SHEETS = 3


def write(
    out: Path,
    *,
    table: Sequence[Sequence[str]],
    masks: Sequence[Sequence[str]],
    agreement: Agreement,
    controls: Mapping[str, Any],
    seconds: float,
) -> Path:
    """Ground a few of the pictures that the harness has just seen, and write ``index.html`` into ``out``.

    Args:
        out: The demo's work folder, its data already written.
        table: Numbers of both runs, header first.
        masks: Metrics of each split of masks, header first.
        agreement: How many answers of the two runs are the same.
        controls: What ``flmm tiny evaluate --json`` printed.
        seconds: The demo took so far.

    Returns:
        The page.
    """
    lmm = GroundedLMM.from_pretrained("flmm_tiny", device="cpu")
    dataset = ReferDataset(out / "data", "refcoco", "val")
    pictures = [looked_at(lmm, dataset, items) for items in islice(by_picture(dataset), PICTURES)]
    lmm.seal.verify()
    sections: list[Section] = [
        Table(
            "With and without the plugin",
            table[0],
            table[1:],
            note=f"The same weights, asked the same questions. {agreement.equal} of {agreement.total} answers are the "
            "same string.",
        ),
        Table(
            "Masks, split by split",
            masks[0],
            masks[1:],
            note="What lmms-eval's own adapter cannot do: masks of the expressions of held-out pictures, by the frozen "
            "LMM's attention. Percent, but for the numbers of items and errors; complete is 0 for made-up pictures.",
        ),
        Cards(
            "Masks",
            [card for card, _ in pictures],
            note="Held-out pictures of synthetic scenes; every phrase is the first expression of its object. "
            "IoU against the true visible area.",
        ),
        Cards(
            "Attention",
            [sheet for _, sheet in pictures[:SHEETS]],
            note="Where the tokens of one phrase look, per layer and head, their mean, and clusters of image tokens: "
            "all that the mask decoder sees.",
            min_width=520,
        ),
        *control_sections(controls),
        Text(
            "How this was made",
            ["Offline, on the CPU, by the commands below; their output is in the folder logs beside this page."],
            code="lmms_eval --model flmm_tiny --tasks mme,refcoco_seg\n"
            "lmms_eval --model llava_hf --tasks mme "
            "--model_args pretrained=$(flmm tiny path),device=cpu,device_map=cpu\n"
            f"flmm tiny evaluate --json\n# {seconds:.0f} s so far",
        ),
    ]
    lead = "A frozen LMM, grounded inside lmms-eval; its chat is what it was."
    return write_page(out / "index.html", "flmm-plugin: the demo", sections, lead=lead)


def by_picture(items: Iterable[ReferItem]) -> Iterator[list[ReferItem]]:
    """The objects of each picture together, pictures in ascending order of their id."""
    ordered = sorted(items, key=lambda item: (item.image_id, item.ref_id))
    for _, group in groupby(ordered, key=lambda item: item.image_id):
        yield list(group)


def looked_at(lmm: GroundedLMM, dataset: ReferDataset, items: Sequence[ReferItem]) -> tuple[Card, Card]:
    """One picture with all its objects grounded in one pass, and the attention maps of its first phrase."""
    image = open_image(items[0].image_path, ORIENTATION)
    phrases = [item.sentences[0] for item in items]
    groundings = lmm.ground(image, phrases)
    details = "; ".join(
        f"{grounding.phrase}: IoU {iou_counts(grounding.mask, dataset.mask(item)).ratio():.2f}"
        for grounding, item in zip(groundings, items, strict=True)
    )
    maps = lmm.attention_maps(image, phrases[0])
    sheet = contact_sheet(maps.maps, image, maps.grid, phrase=phrases[0])
    picture = Card(image, items[0].image_path.name, mask_layer(groundings, image.size), details)
    return picture, Card(sheet, phrases[0])


def control_sections(measured: Mapping[str, Any]) -> list[Section]:
    """Show what ``flmm tiny evaluate`` measured: grounding with its controls, chat by kind of question, captions."""
    grounding: Sequence[Mapping[str, Any]] = measured["grounding"]
    columns = [name for name in grounding[0] if name.endswith(("ciou", "miou"))]
    captions, keywords = measured["captions"], measured["keywords"]
    return [
        Table(
            "Grounding and controls",
            ["method", *(name.replace("_", " ") for name in columns), "phrases"],
            [[row["method"], *(row[name] for name in columns), row["n"]] for row in grounding],
            note=f"{measured['scenes']} fresh scenes of seed {measured['seed']}. A number means something beside "
            "its controls: the same heads on an LMM that was never trained, the wrong phrase, no attention at all.",
            digits=3,
        ),
        Table(
            "Chat",
            ["question", "exact", "chance", "asked"],
            [[kind, row["exact"], row["chance"], row["n"]] for kind, row in measured["chat"].items()],
            digits=3,
        ),
        Table(
            "Captions and keywords",
            ["what", "precision", "recall"],
            [
                ["colour and shape named in free captions", captions["precision"], captions["recall"]],
                ["phrases that the keyword selector chose in them", keywords["precision"], keywords["recall"]],
            ],
            digits=3,
        ),
        Table("Made with", ["what", "value"], [[name, str(value)] for name, value in measured["provenance"].items()]),
    ]
