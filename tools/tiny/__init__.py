"""Make the embedded model from nothing: ``python -m tools.tiny`` in a checkout. Nothing of it is in the wheel."""
