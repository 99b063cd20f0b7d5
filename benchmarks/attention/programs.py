"""A contender on a workload, compiled, run once, and ready to be timed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import device_time, measure
from benchmarks.attention import exact
from benchmarks.attention.contenders import DEFINITION, TORCH, Contender
from benchmarks.attention.workload import Arrays, Workload
from benchmarks.peers.client import Peer

SCRIPT = Path(__file__).parents[1] / "peers" / "torch_sdpa.py"
MOST_OF_MEMORY = 0.8
UNKNOWN = {"trace_seconds": None, "compile_seconds": None, "bytes": None}


@dataclasses.dataclass(frozen=True)
class Ready:
    """What can be timed.

    Attributes:
      seconds: wall seconds of one run, the mean of as many as it is called with.
      device_seconds: how long the device was busy in one run; None where no profiler tells.
      flops: operations that the result needs.
      known: `trace_seconds`, `compile_seconds`, `bytes` (see `measure.Program`) and `first_call_seconds`.
      outcome: output and gradients of the first run.
      exact: what `outcome` is to be compared with, see `contenders.Contender`.
    """

    seconds: Callable[[int], float]
    device_seconds: Callable[[], float | None]
    flops: int
    known: dict[str, Any]
    outcome: exact.Outcome
    exact: str | None


def prepare(contender: Contender, workload: Workload, arrays: Arrays) -> Ready:
    """Compiles a contender and runs it once.

    Raises:
      ValueError: when it cannot serve the workload, or needs more memory than there is.
    """
    learned, given = contender.inputs(workload, arrays)
    cotangent = jnp.asarray(arrays["cotangent"], workload.dtype)
    attend = functools.partial(contender.attend, workload)
    program = measure.compile_program(exact.run(attend, workload), learned, given, cotangent)
    _check_memory(program.bytes["peak"])

    def task() -> Any:
        return jax.block_until_ready(program.run(learned, given, cotangent))

    made = [None]
    first = measure.timed(lambda: made.append(task()))
    known = {
        "trace_seconds": program.trace_seconds,
        "compile_seconds": program.compile_seconds,
        "first_call_seconds": program.trace_seconds + program.compile_seconds + first,
        "bytes": program.bytes,
    }
    return Ready(
        seconds=functools.partial(measure.timed, task),
        device_seconds=functools.partial(device_time.busy_seconds, task),
        flops=contender.flops(workload, learned),
        known=known,
        outcome=jax.tree.map(np.asarray, made[-1]) if contender.exact else {},
        exact=contender.exact,
    )


def start_torch(python: str, workloads: Mapping[str, Workload], arrays: Mapping[str, Arrays], folder: Path) -> Peer:
    """PyTorch's process, which has run each of the workloads once.

    Args:
      python: its interpreter.
      workloads: by name.
      arrays: of each.
      folder: where the arrays and results are exchanged.

    Raises:
      ValueError: when it cannot start.
    """
    entries = {}
    for number, (name, workload) in enumerate(workloads.items()):
        given = folder / f"{number}.npz"
        causal = workload.mask == "causal" and workload.bias == "none" and workload.program != "decode"
        np.savez(given, **_torch_arrays(workload, arrays[name], causal))
        entries[name] = {
            "program": workload.program,
            "arrays": str(given),
            "results": str(folder / f"{number}_results.npz"),
            "dtype": workload.dtype,
            "causal": causal,
        }
    return Peer(TORCH, python, SCRIPT, {"entries": entries})


def from_torch(peer: Peer, name: str, number: int, workload: Workload, folder: Path) -> Ready:
    """What the peer has ready under a name, the `number`-th of those it was started with."""
    with np.load(folder / f"{number}_results.npz") as results:
        outcome = {name: results[name] for name in results.files}
    return Ready(
        seconds=functools.partial(peer.seconds, name),
        device_seconds=lambda: None,
        flops=workload.flops(),
        known={**UNKNOWN, **peer.programs[name]},
        outcome=outcome,
        exact=DEFINITION,
    )


def refuse_torch(workload: Workload) -> str | None:
    """Why PyTorch's function cannot be asked for this; None if it can."""
    if workload.bias in ("t5", "alibi"):
        return f"takes biases as arrays only, not {workload.bias}"
    return None


def _torch_arrays(workload: Workload, arrays: Arrays, causal: bool) -> dict[str, np.ndarray]:
    found = {name: arrays[name] for name in ("query", "key", "value", "cotangent")}
    mask, bias = workload.make_mask(arrays), workload.make_bias(arrays)
    if mask is not None and not causal:
        found["mask"] = np.asarray(mask.dense(workload.queries, workload.length))
    if bias is not None:
        found["bias"] = arrays["bias"]
    return found


def _check_memory(needed: int) -> None:
    available = _available_bytes()
    if needed > MOST_OF_MEMORY * available:
        raise ValueError(f"needs {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free")


def _available_bytes() -> float:
    """Free memory of the device; of the machine where that is the device."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next((1024.0 * int(x.split()[1]) for x in lines if x.startswith("MemAvailable")), float("inf"))
