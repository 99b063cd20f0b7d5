"""Attention alone: kernels, other libraries and variants of your own in one table.

    python -m benchmarks.attention --help

| file | |
|---|---|
| `workload.py` | what is computed: shapes, masks, biases, programs, and what counts as an operation |
| `contenders.py` | who computes it: kernels of `attend`, other libraries, variants from a gin file |
| `programs.py` | a contender on a workload, compiled and ready to be timed |
| `exact.py` | the same in float64 |
| `cases.py` | what runs in turns, and what is recorded of it |
| `musts.py` | the aims that the kernels are held to |
| `records.py` | a record that grows case by case |
| `tables.py` | tables and plots of a record |
"""
