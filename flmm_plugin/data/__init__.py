"""Get and check the data of the benchmarks."""
