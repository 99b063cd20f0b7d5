"""Measurements of the library, each a program: `python -m benchmarks.step_time`. See README.md."""
