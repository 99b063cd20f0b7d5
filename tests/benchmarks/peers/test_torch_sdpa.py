"""Runs where PyTorch is installed, or BENCHMARK_PEER_TORCH names an interpreter that has it."""

import importlib.util
import os
import sys

import pytest

from benchmarks.attention import exact, programs
from benchmarks.attention.contenders import DEFINITION
from benchmarks.attention.workload import Workload

PYTHON = os.environ.get("BENCHMARK_PEER_TORCH") or (sys.executable if importlib.util.find_spec("torch") else None)
SMALL = {"length": 12, "batch": 2, "heads": 4, "head_dim": 8}


@pytest.mark.skipif(PYTHON is None, reason="PyTorch is not installed and BENCHMARK_PEER_TORCH not set")
def test_torch_computes_the_definition_and_its_gradients(tmp_path):
    workloads = {
        "causal": Workload("backward", kv_heads=2, **SMALL),
        "window": Workload("backward", mask="window:4", bias="array", **SMALL),
        "segments": Workload("forward", mask="segments:3", **SMALL),
        "decode": Workload("decode", **SMALL),
    }
    arrays = {name: workload.arrays() for name, workload in workloads.items()}
    with programs.start_torch(PYTHON, workloads, arrays, tmp_path) as peer:
        for number, (name, workload) in enumerate(workloads.items()):
            ready = programs.from_torch(peer, name, number, workload, tmp_path)
            definition = exact.outcome(workload, None, DEFINITION, arrays[name])
            assert set(ready.outcome) == set(definition)
            assert exact.error(ready.outcome, definition) < 1e-5
            assert ready.seconds(2) > 0.0
