"""Metrics: pure functions on masks and texts; no model, no harness."""
