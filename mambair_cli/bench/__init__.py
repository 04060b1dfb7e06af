"""The field's benchmarks: datasets, runs, speed and reports."""
