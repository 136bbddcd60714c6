"""Which of the paper's LMMs a checkpoint is, told from its name: the key under which ``published.csv`` lists it."""

from __future__ import annotations

import re

#: Key -> pattern of a hub id, folder or harness name (lower case, underscores as dashes). First match wins.
_PATTERNS: tuple[tuple[str, str], ...] = (
    ("deepseekvl-1.3b", r"deepseek-?vl.*1\.?3b"),
    ("deepseekvl-7b", r"deepseek-?vl.*7b"),
    ("mgm-hd-7b", r"(mgm|mini-?gemini).*(7b.*hd|hd.*7b)"),
    ("mgm-2b", r"(mgm|mini-?gemini).*2b"),
    ("mgm-7b", r"(mgm|mini-?gemini).*7b"),
    ("hpt-air-1.5-8b", r"hpt.*1[.-]?5.*(8b|air)"),
    ("hpt-air-6b", r"hpt.*(6b|air)|hypergai/hpt$"),
    ("llava-1.6-m-7b", r"llava-?(next-?)?(v?1\.6|next).*mistral.*7b|llava-?(v?1\.6|next)-m-7b"),
    ("llava-1.6-7b", r"llava-?(next-?)?(v?1\.6|next).*7b"),
    ("llava-1.5-7b", r"llava-?v?1\.5.*7b"),
)

#: As the paper prints them.
PRINTED = {
    "deepseekvl-1.3b": "DeepSeekVL-1.3B",
    "mgm-2b": "MGM-2B",
    "llava-1.5-7b": "LLaVA-1.5-7B",
    "hpt-air-6b": "HPT-Air-6B",
    "hpt-air-1.5-8b": "HPT-Air-1.5-8B",
    "mgm-7b": "MGM-7B",
    "deepseekvl-7b": "DeepSeekVL-7B",
    "llava-1.6-7b": "LLaVA-1.6-7B",
    "llava-1.6-m-7b": "LLaVA-1.6-M-7B",
    "mgm-hd-7b": "MGM-HD-7B",
}


def backbone_key(*names: str) -> str:
    """Key of the paper's LMM that one of the names means, "" if none does.

    >>> backbone_key("llava-hf/llava-1.5-7b-hf")
    'llava-1.5-7b'
    >>> backbone_key("llava-hf/llava-v1.6-mistral-7b-hf"), backbone_key("Qwen/Qwen2.5-VL-7B-Instruct")
    ('llava-1.6-m-7b', '')
    """
    for name in names:
        plain = name.lower().replace("_", "-")
        for key, pattern in _PATTERNS:
            if re.search(pattern, plain):
                return key
    return ""
