"""How long a device computes, from JAX's profiler, where the profiler sees the device.

On a CPU the device is the machine that runs everything else: the profiler tells nothing of it, and wall time stands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from benchmarks.measure import Task

NANOSECONDS = 1e-9


def busy_seconds(task: Task, runs: int = 5) -> float | None:
    """Seconds during which the device computes in one run of `task`, the mean of `runs`; None on a CPU."""
    if jax.default_backend() == "cpu":
        return None
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(runs):
                task()
        files = list(Path(folder).rglob("*.xplane.pb"))
        planes = [plane for file in files for plane in jax.profiler.ProfileData.from_file(str(file)).planes]
        total = covered(_device_events(planes))
    return total * NANOSECONDS / runs if total else None


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """How much of the line the intervals (start, end) cover together.

    >>> covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _device_events(planes: Iterable[Any]) -> list[tuple[float, float]]:
    """The kernels that ran: on a GPU the events of its streams, on a TPU those of the line of operations."""
    found = []
    for plane in planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if line.name.startswith("Stream") or line.name == "XLA Ops":
                found += [(event.start_ns, event.start_ns + event.duration_ns) for event in line.events]
    return found
