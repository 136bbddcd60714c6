"""Plain transformers as a VLMEvalKit model: the stock model of a proof.

The kit's own classes put their own words around a question and need a GPU; the model that F-LMM is compared with must
be asked the same. It must also owe nothing to what is to be proven: this file imports nothing of this package, and a
test holds it to that. It is transformers' documented way from a chat to an answer.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from vlmeval.vlm.base import BaseModel


class PlainTransformers(BaseModel):
    """Any checkpoint that transformers loads as an image-text-to-text model.

    Args:
        pretrained: Folder or hub id of the checkpoint.
        revision: Version of it on the hub.
        dtype: As transformers takes it; ``auto`` is as stored.
        device: Device to run on, unless ``device_map`` says how to split the model.
        attn_implementation: Attention kernel; None: transformers' default.
        system_prompt: A system turn before every question.
        trust_remote_code: Run code from the checkpoint's repository.
    """

    is_api = False
    INTERLEAVE = True

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
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"revision": revision, "dtype": dtype, "trust_remote_code": trust_remote_code}
        if attn_implementation:
            options["attn_implementation"] = attn_implementation
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

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @torch.inference_mode()
    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """Answer a message, decoding greedily."""
        content = [
            {"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["value"]}
            for part in message
        ]
        turns: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.system_prompt:
            turns.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system_prompt}]})
        text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        pictures = [Image.open(part["value"]).convert("RGB") for part in message if part["type"] == "image"]
        start = self.tokenizer.bos_token
        # A template that writes the first token itself must not get a second one.
        special = {} if start is None or not text.startswith(start) else {"add_special_tokens": False}
        inputs = self.processor(text=[text], images=pictures or None, padding=True, return_tensors="pt", **special)
        inputs = inputs.to(self.model.device, self.model.dtype)
        end = self.tokenizer.eos_token_id
        made = self.model.generate(
            **inputs, do_sample=False, temperature=None, top_p=None, num_beams=1, max_new_tokens=1024,
            pad_token_id=end, eos_token_id=end,
        )  # fmt: skip
        answer = made[:, inputs["input_ids"].shape[1] :]
        said: str = self.tokenizer.batch_decode(answer, skip_special_tokens=True)[0]
        return said
