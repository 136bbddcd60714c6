"""Plain transformers as an lmms-eval model: the stock model where lmms-eval has no adapter that works.

The stock run of a proof must owe nothing to what is to be proven: this file imports nothing of this package, and a test
holds it to that. It is transformers' documented way from a chat to an answer: chat template, processor, ``generate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from transformers import AutoModelForImageTextToText, AutoProcessor


class PlainTransformers(lmms):
    """Any checkpoint that transformers loads as an image-text-to-text model.

    Args:
        pretrained: Folder or hub id of the checkpoint.
        revision: Version of it on the hub.
        dtype: As transformers takes it; ``auto`` is as stored.
        device: Device to run on, unless ``device_map`` says how to split the model.
        attn_implementation: Attention kernel; None: transformers' default.
        system_prompt: A system turn before every chat.
        trust_remote_code: Run code from the checkpoint's repository.
        load_in_4bit, load_in_8bit: Quantise the weights (bitsandbytes).
        batch_size: Requests per ``generate``; those handed over together are answered together.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "cpu",
        device_map: str | None = None,
        attn_implementation: str | None = None,
        system_prompt: str | None = None,
        trust_remote_code: bool = False,
        load_in_4bit: bool = False,
        load_in_8bit: bool = False,
        batch_size: int = 1,
    ) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        options: dict[str, Any] = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
        if attn_implementation:
            options["attn_implementation"] = attn_implementation
        if load_in_4bit or load_in_8bit:
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit)
            device_map = device_map or device  # quantised where they are put; not to be moved afterwards
        if device_map:
            options["device_map"] = device_map
        model: Any = AutoModelForImageTextToText.from_pretrained(pretrained, **options)
        self.model = (model if device_map else model.to(device)).eval()
        self.processor = AutoProcessor.from_pretrained(
            pretrained, revision=revision, trust_remote_code=trust_remote_code
        )
        self.processor.tokenizer.padding_side = "left"
        if self.processor.tokenizer.pad_token_id is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token
        self.system_prompt = system_prompt
        self._batch_size = int(batch_size)

    @property
    def batch_size(self) -> int:
        """Requests per ``generate``."""
        return self._batch_size

    @property
    def device(self) -> Any:
        """The device that inputs are moved to."""
        return self.model.device

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def generate_until(self, requests: list[Any]) -> list[GenerationResult]:
        """Answer requests of either form, ``batch_size`` at a time."""
        answers: list[GenerationResult] = []
        for start in range(0, len(requests), self._batch_size):
            answers += self._answer(requests[start : start + self._batch_size])
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Return each continuation's mean loss and whether it is the greedy one, as lmms-eval's ``llava_hf`` does."""
        scores = []
        for request in requests:
            context, target, doc_to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            pictures = list(doc_to_visual(doc) or [])
            turn = {"role": "user", "content": _content(pictures, context)}
            said = target if isinstance(target, str) else target(doc)
            answer = {"role": "assistant", "content": [{"type": "text", "text": said}]}
            prompt = self._encode([self._render([turn], True)], pictures)["input_ids"]
            inputs = self._encode([self._render([turn, answer], False)], pictures)
            start = prompt.shape[1]
            labels = inputs["input_ids"].clone()
            labels[:, :start] = -100
            with torch.inference_mode():
                out = self.model(**inputs, labels=labels)
            greedy = out.logits.argmax(dim=-1)[:, start:]
            scores.append((float(out.loss), bool((greedy == inputs["input_ids"][:, start:]).all())))
        return scores

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuse: not offered."""
        raise NotImplementedError("plain transformers answers single rounds; leave multi-round tasks out")

    def _answer(self, requests: Sequence[Any]) -> list[GenerationResult]:
        texts, pictures = [], []
        options: dict[str, Any] = {}
        for request in requests:
            context, second, third, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            if isinstance(second, dict):
                options, shown = second, list(third(doc) or [])
                turns = [{"role": "user", "content": _content(shown, context)}]
            else:
                options = third
                chat = ChatMessages(messages=second(doc))
                shown = chat.extract_media()[0]
                turns = [
                    {
                        "role": one.role,
                        "content": [
                            {"type": "image"} if part.type == "image" else {"type": "text", "text": part.text}
                            for part in one.content
                        ],
                    }
                    for one in chat.messages
                ]
            texts.append(self._render(turns, True))
            pictures.append(shown)
        grouped = [picture for some in pictures for picture in some]
        inputs = self._encode(texts, grouped)
        warmth = options.get("temperature") or 0
        end = self.tokenizer.eos_token_id
        made = self.model.generate(
            **inputs,
            do_sample=warmth > 0,
            temperature=warmth if warmth > 0 else None,
            top_p=options.get("top_p"),
            num_beams=options.get("num_beams", 1),
            max_new_tokens=options.get("max_new_tokens", 1024),
            pad_token_id=end,
            eos_token_id=end,
        )
        answers = made[:, inputs["input_ids"].shape[1] :]
        said = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [GenerationResult(text, TokenCounts(output_tokens=answers.shape[1])) for text in said]

    def _render(self, turns: list[dict[str, Any]], opens: bool) -> str:
        if self.system_prompt:
            turns = [{"role": "system", "content": [{"type": "text", "text": self.system_prompt}]}, *turns]
        text: str = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=opens)
        return text

    def _encode(self, texts: list[str], pictures: list[Any]) -> Any:
        start = self.tokenizer.bos_token
        # A template that writes the first token itself must not get a second one.
        special = {} if start is None or not texts[0].startswith(start) else {"add_special_tokens": False}
        inputs = self.processor(text=texts, images=pictures or None, padding=True, return_tensors="pt", **special)
        return inputs.to(self.model.device, self.model.dtype)


class PlainTransformersSimple(PlainTransformers):
    """The same model for ``--force_simple``: lmms-eval's plain prompts."""

    is_simple = True


def _content(pictures: Sequence[Any], text: str) -> list[dict[str, str]]:
    return [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
