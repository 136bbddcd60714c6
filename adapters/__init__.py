"""Harnesses: how an evaluation harness drives the method. Each knows the public API and one harness."""
