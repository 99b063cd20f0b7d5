"""What runs in turns, and what is recorded of it.

Glossary:

* *entry*: a contender on a workload.
* *case*: entries that are compared, timed in turns in one process, with the calibration among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.attention import exact, programs
from benchmarks.attention.contenders import ITSELF, TORCH, Contender
from benchmarks.attention.programs import Ready
from benchmarks.attention.workload import Workload

FLOPS_COUNTED_BY = (
    "formula: 4 per visible pair of query and key, head, and element of a head (causal: half of all pairs); "
    "forward and backward together 3.5 times that; projections of layers 2 per token and number, thrice with gradients"
)
NO_TORCH = "no interpreter that has it is known; give --peer-python torch=PATH, or BENCHMARK_PEER_TORCH"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender on a workload."""

    contender: str
    workload: Workload


@dataclasses.dataclass(frozen=True)
class Case:
    """Entries that are compared.

    Attributes:
      name: of the case.
      entries: in the order of the table.
    """

    name: str
    entries: tuple[Entry, ...]

    def result_name(self, entry: Entry) -> str:
        """Names an entry in a record; the workload is left out where the case is named after it."""
        workload = "" if entry.workload.name == self.name else f" {entry.workload.name}"
        return f"{self.name}: {entry.contender}{workload}"


@dataclasses.dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
      rounds: at most so many,
      budget: and as many as fit into these seconds per case, but at least 3.
      warmup: rounds before those.
      pause: seconds of rest before every timing. On CPU, a program that has just freed gigabytes slows down whatever
        runs in the next 0.2 s, by up to a quarter.
      seed: of the arrays.
      torch: PyTorch's interpreter, if there is one.
    """

    rounds: int = 15
    budget: float = 40.0
    warmup: int = 1
    pause: float = 0.3
    seed: int = 0
    torch: str | None = None


def by_workload(contenders: Sequence[str], workloads: Sequence[Workload]) -> list[Case]:
    """One case per workload, with all contenders."""
    return [Case(w.name, tuple(Entry(name, w) for name in contenders)) for w in workloads]


def measure_case(case: Case, contenders: Mapping[str, Contender], options: Options) -> dict[str, Any]:
    """Measures a case.

    Returns:
      `case`: its name, when and how it was measured, and the calibration; `results`; `skipped`: a list of `name`,
      `case` and `reason`.

    Raises:
      ValueError: when nothing of it can be measured.
    """
    before = measure.environment()
    with contextlib.ExitStack() as stack:
        started = _Started(case, contenders, options, stack)
        if not started.ready:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in started.skipped.items())
            raise ValueError(f"{case.name} has nothing to measure: {reasons}. Choose other contenders.")
        dtype = case.entries[0].workload.dtype
        timings = _time(started.ready, options, dtype)
        device = {name: found.device_seconds() for name, found in started.ready.items()}
    entries = {case.result_name(entry): entry for entry in case.entries}
    results = [
        _result(case, name, entries[name], found, timings)
        | {"device_seconds": device[name], "error": started.errors[name], "error_against": found.exact}
        for name, found in started.ready.items()
    ]
    about = {
        "name": case.name,
        "time": before["time"],
        "load": before["machine"]["load"],
        "git": before["git"],
        "peers": started.versions,
        "rounds": timings.rounds,
        "warmup": options.warmup,
        "pause": options.pause,
        "calibration": measure.calibration(timings.seconds, timings.work, dtype),
    }
    skipped = [{"name": name, "case": case.name, "reason": reason} for name, reason in started.skipped.items()]
    return {"case": about, "results": results, "skipped": skipped}


class _Started:
    """The entries of a case, compiled and run once.

    Attributes:
      ready: by the name of the result.
      skipped: name -> why not.
      errors: of those that are ready.
      versions: of peers in other processes.
    """

    def __init__(self, case: Case, contenders: Mapping[str, Contender], options: Options, stack: contextlib.ExitStack):
        self.ready: dict[str, Ready] = {}
        self.skipped: dict[str, str] = {}
        self.errors: dict[str, float | None] = {}
        self.versions: dict[str, dict[str, str]] = {}
        self._options, self._stack = options, stack
        self._arrays = functools.cache(lambda workload: workload.arrays(options.seed))
        self._exact: dict[tuple[Workload, str | None], exact.Outcome | None] = {}
        outside = {}
        for entry in case.entries:
            name = case.result_name(entry)
            if entry.contender == TORCH:
                outside[name] = entry.workload
                continue
            contender = contenders[entry.contender]
            try:
                found = programs.prepare(contender, entry.workload, self._arrays(entry.workload))
            except (ValueError, NotImplementedError) as error:
                self.skipped[name] = str(error)
                continue
            self._add(name, entry, found, contender)
        self._add_torch(outside)

    def _add(self, name: str, entry: Entry, found: Ready, contender: Contender | None) -> None:
        key = entry.workload, found.exact if found.exact != ITSELF else entry.contender
        if key not in self._exact:
            self._exact[key] = exact.outcome(entry.workload, contender, found.exact, self._arrays(entry.workload))
        known = self._exact[key]
        self.errors[name] = None if known is None else exact.error(found.outcome, known)
        self.ready[name] = dataclasses.replace(found, outcome={})  # no need to hold it any longer

    def _add_torch(self, workloads: dict[str, Workload]) -> None:
        for name, workload in list(workloads.items()):
            reason = programs.refuse_torch(workload) if self._options.torch else NO_TORCH
            if reason:
                self.skipped[name] = reason
                del workloads[name]
        if not workloads or self._options.torch is None:
            return
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        arrays = {name: self._arrays(workload) for name, workload in workloads.items()}
        peer = self._stack.enter_context(programs.start_torch(self._options.torch, workloads, arrays, folder))
        self.versions[TORCH] = peer.versions
        for number, (name, workload) in enumerate(workloads.items()):
            found = programs.from_torch(peer, name, number, workload, folder)
            self._add(name, Entry(TORCH, workload), found, None)


@dataclasses.dataclass(frozen=True)
class _Timings:
    seconds: dict[str, measure.Spread]
    work: dict[str, float]
    times: dict[str, int]
    rounds: int


def _time(ready: Mapping[str, Ready], options: Options, dtype: str) -> _Timings:
    """Rounds of everything that is ready, and of the calibrating tasks."""
    calibrating = {"matmul": measure.matmul_task(dtype), "read": measure.read_task()}
    timers = {name: functools.partial(measure.timed, task) for name, (task, _) in calibrating.items()}
    once = {name: found.seconds(1) for name, found in ready.items()}
    times = {name: measure.times_for(seconds) for name, seconds in once.items()}
    timers |= {name: functools.partial(found.seconds, times[name]) for name, found in ready.items()}
    each = sum(times[name] * seconds for name, seconds in once.items()) + options.pause * len(timers)
    rounds = measure.rounds_within(options.budget, each, options.rounds)
    seconds = measure.alternate(timers, rounds, options.warmup, options.pause)
    return _Timings(seconds, {name: amount for name, (_, amount) in calibrating.items()}, times, rounds)


def _result(case: Case, name: str, entry: Entry, found: Ready, timings: _Timings) -> dict[str, Any]:
    spread = timings.seconds[name]
    return {
        "name": name,
        "case": case.name,
        "contender": entry.contender,
        "workload": dataclasses.asdict(entry.workload),
        "seconds": dataclasses.asdict(spread),
        "runs_per_timing": timings.times[name],
        "flops": found.flops,
        "flops_per_second": found.flops / spread.median,
        "matmul_share": measure.matmul_share(timings.seconds, timings.work, name, found.flops),
        **found.known,
    }
