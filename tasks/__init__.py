"""Benchmarks: prompts, official splits and scoring, one folder per benchmark."""
