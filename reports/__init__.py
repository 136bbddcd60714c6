"""Results: figures, galleries and tables made from result files. Knows no torch and no harness."""
