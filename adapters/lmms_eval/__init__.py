"""lmms-eval: models and tasks of the plugin, registered lazily."""
