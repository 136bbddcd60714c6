"""Choose the tokens of an answer that name something to ground: the keyword selector.

Source: F-LMM (arXiv 2406.05821), section 3.3: one linear layer on the last hidden states, sigmoid, threshold 0.3;
adjacent tokens over the threshold are one object.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

DEFAULT_THRESHOLD = 0.3


class KeywordSelector(nn.Module):
    """Score every token of a text.

    Args:
        hidden_size: Width d of the backbone's hidden states.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm ``[..., t, d]`` -> logits ``[..., t]``, for a BCE loss."""
        scores: Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return scores[..., 0]

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states after the final norm ``[..., t, d]`` -> scores ``[..., t]`` in 0..1."""
        return torch.sigmoid(self.logits(hidden))

    @staticmethod
    def select(scores: Tensor, threshold: float = DEFAULT_THRESHOLD) -> list[tuple[int, int]]:
        """Return the runs ``[start, end)`` of adjacent tokens whose score exceeds the threshold.

        >>> KeywordSelector.select(torch.tensor([0.1, 0.9, 0.8, 0.2, 0.31]))
        [(1, 3), (4, 5)]
        """
        runs: list[tuple[int, int]] = []
        for index, score in enumerate(scores.tolist()):
            if score <= threshold:
                continue
            if runs and runs[-1][1] == index:
                runs[-1] = (runs[-1][0], index + 1)
            else:
                runs.append((index, index + 1))
        return runs
