"""Train grounding heads on a frozen LMM: ``flmm train``. The frozen part runs once; the heads learn from it."""

from __future__ import annotations

from flmm_plugin.training.recipe import TrainRecipe, read_recipe, recipes

__all__ = ["TrainRecipe", "read_recipe", "recipes"]
