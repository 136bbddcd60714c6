"""Which tokens name something."""

from __future__ import annotations

import pytest
import torch

from flmm_plugin.heads import KeywordSelector


@pytest.mark.parametrize(
    ("scores", "runs"),
    [
        ([], []),
        ([0.1, 0.2], []),
        ([0.9, 0.8, 0.1, 0.4], [(0, 2), (3, 4)]),
        ([0.3, 0.3001], [(1, 2)]),  # exceeding the threshold, not reaching it
        ([0.9] * 4, [(0, 4)]),
    ],
)
def test_adjacent_tokens_over_the_threshold_are_one(scores: list[float], runs: list[tuple[int, int]]) -> None:
    assert KeywordSelector.select(torch.tensor(scores, dtype=torch.float64)) == runs


def test_threshold_is_an_argument() -> None:
    assert KeywordSelector.select(torch.tensor([0.4, 0.6]), threshold=0.5) == [(1, 2)]


def test_scores_are_a_linear_layer_and_a_sigmoid() -> None:
    selector, hidden = KeywordSelector(5), torch.randn(7, 5)
    expected = 1 / (1 + torch.exp(-(hidden @ selector.linear.weight[0] + selector.linear.bias)))
    assert torch.allclose(selector(hidden), expected, atol=1e-6)
    assert selector(hidden.to(torch.bfloat16)).dtype == torch.float32


def test_it_learns_a_direction() -> None:
    torch.manual_seed(0)
    selector, hidden = KeywordSelector(4), torch.randn(64, 4)
    named = (hidden[:, 1] > 0).float()
    optimiser = torch.optim.AdamW(selector.parameters(), lr=0.2)
    for _ in range(30):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(selector.logits(hidden), named).backward()
        optimiser.step()
    assert ((selector(hidden) > 0.5).float() == named).float().mean() > 0.95
