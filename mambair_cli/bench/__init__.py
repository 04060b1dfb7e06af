"""The field's benchmarks: datasets, runs and reports."""
