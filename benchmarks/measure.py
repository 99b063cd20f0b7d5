"""What all benchmarks share: rounds of timings, calibration, records and their JSON.

Glossary:

* *task*: a function without arguments that blocks until its result is there.
* *round*: one timing of every task, one after the other. Another load on the machine, or a clock that drifts, then hits
  all of them; ratios are taken within rounds and only then summarised.
* *spread*: median, quartiles and all timings of one task, or of a ratio, over the rounds.
* *record*: the JSON of one run: `environment`, `settings`, `calibration`, `results` (each with a `name` and the spread
  `seconds`), `ratios`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Task = Callable[[], Any]
FORMAT = 1
MATMUL_SIZE = 2048
READ_FLOATS = 2**26  # 256 MiB, several times any cache
PACKAGES = ("flaxformer", "jax", "jaxlib", "flax", "optax", "numpy")
FLAGS = ("XLA_", "JAX_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_", "TF_XLA_")


@dataclasses.dataclass(frozen=True)
class Spread:
    """Several measurements of one thing.

    Attributes:
      median: the middle one.
      low: the lower quartile.
      high: the upper quartile.
      values: all of them, in the order of the rounds.
    """

    median: float
    low: float
    high: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value.

        >>> Spread.of([3.0, 1.0, 2.0]).median
        2.0
        """
        values = tuple(float(value) for value in values)
        if not values:
            raise ValueError("a spread was asked for of no values; expected at least one. Measure at least one round.")
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        return cls(float(median), float(low), float(high), values)

    def __str__(self) -> str:
        return f"{self.median:.4g} [{self.low:.4g}, {self.high:.4g}]"


def timed(task: Task, times: int = 1) -> float:
    """Wall seconds of one run of `task`, the mean of so many runs."""
    start = time.perf_counter()
    for _ in range(times):
        task()
    return (time.perf_counter() - start) / times


def times_for(seconds: float, least: float = 0.05) -> int:
    """How often to run a task of these seconds within one timing, so that the clock and its readings cost nothing.

    >>> times_for(0.01), times_for(2.0)
    (5, 1)
    """
    return max(1, math.ceil(least / max(seconds, 1e-6)))


def rounds_within(budget: float, seconds: float, most: int, least: int = 3) -> int:
    """How many rounds of these seconds fit into the budget.

    >>> rounds_within(60, seconds=4, most=9), rounds_within(60, seconds=100, most=9)
    (9, 3)
    """
    return min(most, max(min(least, most), int(budget / max(seconds, 1e-6))))


def alternate(
    timers: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1, pause: float = 0.0
) -> dict[str, Spread]:
    """Times several tasks in turns: a, b, c, a, b, c, ...

    Args:
      timers: by name, functions that run a task once and return its seconds; for a task here, `partial(timed, task)`.
      rounds: how often each is timed.
      warmup: rounds before those, not counted.
      pause: seconds of rest before every timing.

    Raises:
      ValueError: for fewer than one round.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds is {rounds} and warmup {warmup}; expected at least 1 and at least 0.")
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for number in range(warmup + rounds):
        for name, timer in timers.items():
            time.sleep(pause)
            elapsed = timer()
            if number >= warmup:
                seconds[name].append(elapsed)
    return {name: Spread.of(values) for name, values in seconds.items()}


def ratio(numerator: Spread, denominator: Spread) -> Spread:
    """The spread of the ratios within each round.

    Raises:
      ValueError: when the two were not measured in the same rounds.
    """
    if len(numerator.values) != len(denominator.values):
        raise ValueError(
            f"a ratio was asked for of {len(numerator.values)} rounds by {len(denominator.values)}; "
            "expected measurements from the same rounds."
        )
    return Spread.of(a / b for a, b in zip(numerator.values, denominator.values, strict=True))


def matmul_size() -> int:
    """Rows of the matrices that calibrate: larger on accelerators, which small ones do not fill."""
    return MATMUL_SIZE * (1 if jax.default_backend() == "cpu" else 4)


def matmul_task(dtype: str = "float32") -> tuple[Task, float]:
    """A product of two square matrices, and its floating-point operations."""
    size = matmul_size()
    a = jnp.ones((size, size), dtype)
    run = jax.jit(jnp.matmul).lower(a, a).compile()
    return (lambda: jax.block_until_ready(run(a, a))), 2.0 * size**3


def matmul_share(seconds: Mapping[str, Spread], work: Mapping[str, float], name: str, flops: float) -> float:
    """The operations per second of a program over those of the `matmul` in the same rounds, the median."""
    return ratio(seconds["matmul"], seconds[name]).median * flops / work["matmul"]


def read_task() -> tuple[Task, float]:
    """The sum of a large float32 array, and the bytes it reads."""
    x = jnp.ones((READ_FLOATS,), jnp.float32)
    run = jax.jit(jnp.sum).lower(x).compile()
    return (lambda: jax.block_until_ready(run(x))), 4.0 * READ_FLOATS


def calibration(seconds: Mapping[str, Spread], work: Mapping[str, float], dtype: str = "float32") -> dict[str, Any]:
    """Rates of the calibrating tasks that ran in the same rounds as everything else.

    Args:
      seconds: has `matmul` and `read`.
      work: the floating-point operations of `matmul`, the bytes of `read`.
      dtype: of the matrices.
    """
    rates = {name: Spread.of(work[name] / value for value in seconds[name].values) for name in ("matmul", "read")}
    return {
        "matmul": f"{matmul_size()} x {matmul_size()} by the same, {dtype}",
        "matmul_flops_per_second": dataclasses.asdict(rates["matmul"]),
        "read": f"sum of {READ_FLOATS} float32",
        "read_bytes_per_second": dataclasses.asdict(rates["read"]),
    }


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function, and what is known of it without running it.

    Attributes:
      run: the executable.
      trace_seconds: tracing, and lowering to the compiler's input.
      compile_seconds: the compiler.
      bytes: `arguments`, `outputs`, `aliased` (outputs written over donated arguments), `temporaries`, all from the
        compiler's memory analysis, and `peak`, what the program holds at most: arguments, outputs and temporaries.
      compiler: the compiler's own estimate of `flops` and `bytes_accessed`.
    """

    run: Callable[..., Any]
    trace_seconds: float
    compile_seconds: float
    bytes: dict[str, int]
    compiler: dict[str, float]


def compile_program(function: Callable[..., Any], *arguments: Any, donate: Sequence[int] = ()) -> Program:
    """Traces and compiles `function` for `arguments`, with the clock on each.

    Args:
      function: pure.
      *arguments: arrays or their shapes.
      donate: numbers of the arguments that the outputs may overwrite.
    """
    start = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=tuple(donate)).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    return Program(compiled, traced - start, done - traced, _program_bytes(compiled), _compiler_estimate(compiled))


def _program_bytes(compiled: Any) -> dict[str, int]:
    memory = compiled.memory_analysis()
    found = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    # The compiler's own peak leaves out the temporaries on CPU.
    return found | {"peak": found["arguments"] + found["outputs"] - found["aliased"] + found["temporaries"]}


def _compiler_estimate(compiled: Any) -> dict[str, float]:
    estimate = compiled.cost_analysis() or {}
    return {"flops": estimate.get("flops", 0.0), "bytes_accessed": estimate.get("bytes accessed", 0.0)}


def environment() -> dict[str, Any]:
    """The machine, the versions, the flags and the revision that a run was made with."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {
            "processor": _processor(),
            "architecture": platform.machine(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
            "load": list(os.getloadavg()),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "flags": {name: value for name, value in sorted(os.environ.items()) if name.startswith(FLAGS)},
        "git": git_revision(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_revision(folder: str | os.PathLike[str] = Path(__file__).parent) -> dict[str, Any]:
    """The commit of the checkout, and whether tracked files differ from it; None outside a repository."""
    git = functools.partial(subprocess.run, cwd=folder, capture_output=True, text=True)
    try:
        revision = git(["git", "rev-parse", "HEAD"])
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"])
    except OSError:
        return {"revision": None, "changed": None}
    if revision.returncode:
        return {"revision": None, "changed": None}
    return {"revision": revision.stdout.strip(), "changed": bool(changed.stdout.strip())}


def write_record(path: str | os.PathLike[str], benchmark: str, record: Mapping[str, Any]) -> Path:
    """Writes a record as JSON, whole or not at all; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"benchmark": benchmark, "format": FORMAT, **record}, indent=1) + "\n"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)
    return path


def read_record(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A record from its JSON.

    Raises:
      ValueError: for a file that is missing, no JSON, or no record of this format.
    """
    expected = "expected the results.json that a benchmark wrote."
    try:
        record = json.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); {expected}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); {expected}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or "results" not in record:
        raise ValueError(f"{path} is no record of format {FORMAT}; {expected} Measure again with this version.")
    return record
