"""Replies to a GCG picture: what is taken from them, and the numbers of a set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_plugin.errors import ToolNotFound
from flmm_plugin.records import decode_rle, encode_rle, error_json
from flmm_plugin.tasks.gcg import encoders, scoring
from flmm_plugin.tasks.gcg.benchmark import read_documents
from flmm_plugin.tasks.metrics.bootstrap import statistic_of
from flmm_plugin.tasks.task_files import aggregations
from flmm_plugin.tiny import layouts_gcg
from tests.tasks import metric_names

SIZE = (6, 8)


def mask(x0: int, x1: int) -> Any:
    found = np.zeros(SIZE, dtype=bool)
    found[:, x0:x1] = True
    return found


DOC = {
    "image_id": "sa_7",
    "image_path": "sa_7.jpg",
    "height": 6,
    "width": 8,
    "caption": "A dog on a bed.",
    "labels": ["dog", "bed"],
    "masks": [encode_rle(mask(0, 2)), encode_rle(mask(4, 8))],
    "sentence_encoder": "words",
    "expected_items": 1,
}


def reply(text: str, pairs: list[tuple[str, Any]], phrases: bool = True) -> str:
    listed = [{"phrase": words, "span": None, "mask": at} for at, (words, _) in enumerate(pairs)]
    content: dict[str, Any] = {"text": text, "masks": [encode_rle(one) for _, one in pairs]}
    return json.dumps({**content, "phrases": listed} if phrases else content)


def numbers(*samples: dict[str, Any]) -> dict[str, float]:
    return {
        metric: round(statistic_of(aggregations("flmm_gcg_val")[metric])([sample[metric] for sample in samples]), 2)
        for metric in ("AP50", "mIoU", "mask_recall")
    }


def test_a_right_answer_scores_full_marks() -> None:
    sample = scoring.score_reply(DOC, reply("A dog on a bed.", [("dog", mask(0, 2)), ("bed", mask(4, 8))]))
    assert numbers(sample) == {"AP50": 100, "mIoU": 100, "mask_recall": 100}
    assert set(sample) == {*metric_names.GCG, "reference"}
    assert sample["METEOR"] == {"image_id": "sa_7", "caption": "A dog on a bed.", "reference": "A dog on a bed."}
    assert sample["errors"] == {"count": 0}
    assert sample["reference"]["masks"] == DOC["masks"]
    json.dumps(sample)


def test_right_masks_with_wrong_words_are_no_hits() -> None:
    sample = scoring.score_reply(DOC, reply("?", [("bed", mask(0, 2)), ("dog", mask(4, 8))]))
    assert numbers(sample) == {"AP50": 100, "mIoU": 100, "mask_recall": 0}


def test_one_of_two_found_and_one_too_many() -> None:
    sample = scoring.score_reply(DOC, reply("?", [("the dog", mask(0, 2)), ("cat", mask(2, 4))]))
    # Recall 1 of 2 at full precision: 51 of COCO's 101 points.
    assert numbers(sample) == {"AP50": pytest.approx(100 * 51 / 101, abs=0.01), "mIoU": 100, "mask_recall": 50}


def test_marks_in_the_text_stand_in_for_phrases() -> None:
    text = "<p>A dog</p> [SEG] on <p> a\nbed </p> [SEG]."
    said = scoring.read_prediction(
        scoring.parse_masks_json(reply(text, [("", mask(0, 2)), ("", mask(4, 8))], False)), SIZE
    )
    assert said.phrases == ("A dog", "a bed")
    assert said.caption == "A dog on a bed ."
    assert len(said.masks) == 2


def test_more_masks_than_phrases_void_recall_alone() -> None:
    pairs = [("", mask(0, 2)), ("", mask(4, 8))]
    sample = scoring.score_reply(DOC, reply("<p>dog</p> [SEG] [SEG]", pairs, phrases=False))
    assert numbers(sample) == {"AP50": 100, "mIoU": 100, "mask_recall": 0}


def test_phrases_say_which_mask_is_whose() -> None:
    content = json.loads(reply("?", [("bed", mask(4, 8)), ("dog", mask(0, 2))]))
    content["masks"].reverse()
    for one in content["phrases"]:
        one["mask"] = 1 - one["mask"]
    content["phrases"].append({"phrase": "nowhere", "mask": None})
    sample = scoring.score_reply(DOC, json.dumps(content))
    assert sample["mask_recall"]["phrases"] == ["bed", "dog"]
    assert numbers(sample)["mask_recall"] == 100


def test_masks_that_no_phrase_names_are_kept_as_with_marks() -> None:
    pairs = [("", mask(2, 3)), ("dog", mask(0, 2)), ("", mask(4, 8))]
    content = json.loads(reply("<p>dog</p>", pairs))
    content["phrases"] = [{"phrase": "dog", "span": None, "mask": 1}]
    said = scoring.read_prediction(scoring.parse_masks_json(json.dumps(content)), SIZE)
    assert (said.phrases, said.order, len(said.masks), said.usable) == (("dog",), (1, 0, 2), 3, True)
    marked = scoring.score_reply(DOC, reply("<p>dog</p>", pairs, phrases=False))
    named = scoring.score_reply(DOC, json.dumps(content))
    assert named["mIoU"]["predicted"] == marked["mIoU"]["predicted"] == 3
    assert numbers(named)["mIoU"] == numbers(marked)["mIoU"] == 100


def test_many_phrases_of_one_mask_cost_one_mask() -> None:
    content = json.loads(reply("?", [("dog", mask(0, 2))]))
    content["phrases"] *= 20_000
    sample = scoring.score_reply(DOC, json.dumps(content))
    assert sample["mIoU"]["predicted"] == 20_000
    assert numbers(sample)["mIoU"] == 100


def test_unusable_replies_count_as_errors_and_stay_in_the_denominators() -> None:
    good = scoring.score_reply(DOC, reply("A dog.", [("dog", mask(0, 2)), ("bed", mask(4, 8))]))
    failed = scoring.score_reply(DOC, error_json(RuntimeError("no")))
    said = scoring.score_reply(DOC, "I cannot see any dog.")
    turned = scoring.score_reply(DOC, reply("?", [("dog", mask(0, 2).T), ("bed", mask(4, 8))]))
    assert [one["errors"]["count"] for one in (good, failed, said, turned)] == [0, 1, 1, 1]
    assert failed["METEOR"]["caption"] == ""
    assert said["METEOR"]["caption"] == "I cannot see any dog."
    assert numbers(good, failed) == {"AP50": pytest.approx(50.5, abs=0.01), "mIoU": 50, "mask_recall": 50}
    # The turned mask counts as an empty one: it keeps its phrase's place.
    assert turned["mask_recall"]["phrases"] == ["dog", "bed"]
    assert numbers(turned)["mask_recall"] == 50


def test_the_order_of_the_samples_changes_nothing() -> None:
    samples = []
    for number, (x0, x1) in enumerate([(0, 2), (1, 3), (0, 5), (4, 8)]):
        doc = {**DOC, "image_id": f"sa_{9 - number}"}
        samples.append(scoring.score_reply(doc, reply("?", [("dog", mask(x0, x1)), ("bed", mask(3, 8))])))
    assert numbers(*samples) == numbers(*samples[::-1])
    assert 0 < numbers(*samples)["AP50"] < 100


def test_a_logged_sample_gives_its_document_back() -> None:
    answer = reply("A dog.", [("dog", mask(0, 3))])
    sample = scoring.score_reply(DOC, answer)
    logged = json.loads(json.dumps(sample))
    assert scoring.score_reply(scoring.logged_document(logged), answer) == sample


# --- encoders ------------------------------------------------------------------------------------------------------


def test_any_function_can_compare_phrases() -> None:
    sample = scoring.score_reply(DOC, reply("?", [("hound", mask(0, 2)), ("sofa", mask(4, 8))]))["mask_recall"]
    assert scoring.mask_recall([sample]) == 0

    def meaning(texts: Any) -> Any:
        return np.array([[1.0, 0.0] if text in ("dog", "hound") else [0.0, 1.0] for text in texts])

    assert scoring.mask_recall([sample], meaning) == 100


def test_predictions_of_two_encoders_are_not_mixed() -> None:
    sample = scoring.score_reply(DOC, reply("?", [("dog", mask(0, 2))]))["mask_recall"]
    with pytest.raises(ValueError, match="several sentence encoders"):
        scoring.mask_recall([sample, {**sample, "encoder": "other"}])


def test_the_environment_names_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLMM_SENTENCE_ENCODER", raising=False)
    assert encoders.chosen() == "bert-base-uncased"
    assert encoders.chosen("words") == "words"
    monkeypatch.setenv("FLMM_SENTENCE_ENCODER", "mine")
    assert encoders.chosen("words") == "mine"


def test_a_missing_encoder_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ToolNotFound, match=r"FLMM_SENTENCE_ENCODER.*--encoder"):
        encoders.load(str(tmp_path / "nothing"))


def test_a_transformer_s_vectors_are_the_mean_of_all_its_tokens(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    ).eval()
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    texts = ["a red dog", "dog"]
    found = encoders.load(str(tmp_path))(texts)
    for text, vector in zip(texts, found, strict=True):
        # One by one, without padding, as the benchmark's evaluator does.
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert np.allclose(vector, states.mean(dim=0).numpy(), atol=1e-5)
    assert encoders.cosine(found, found)[0, 0] == pytest.approx(1)


def test_scoring_imports_no_torch() -> None:
    import subprocess

    code = "import sys, flmm_plugin.tasks.gcg.scoring, flmm_plugin.tasks.rescoring; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=120, check=False).returncode == 0


# --- documents -----------------------------------------------------------------------------------------------------


def test_documents_of_the_tiny_world(tmp_path: Path) -> None:
    layouts_gcg.write_grandf(tmp_path, scenes=3, splits=("val",))
    docs = read_documents("val", {"root": tmp_path, "sentence_encoder": "words"})
    assert (len(docs), docs.expected_items) == (3, None)
    for doc in docs:
        assert set(doc) == set(docs.features) == set(DOC) | {"orientation"}
        assert len(doc["labels"]) == len(doc["masks"]) > 0
        assert all(label in doc["caption"] for label in doc["labels"])
        assert doc["image"].size == (doc["width"], doc["height"])
        assert all(decode_rle(code).any() for code in doc["masks"])
    assert docs[0] is docs[0]
    assert docs[1:] == [docs[1], docs[2]]
    with pytest.raises(IndexError):
        docs[3]
