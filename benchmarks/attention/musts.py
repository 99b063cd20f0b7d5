"""The aims that the kernels are held to, on CPU: each row a case, and what its results must reach.

    python -m benchmarks.attention --preset musts --only window

All ratios are taken within rounds of one process; their median is judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks import measure
from benchmarks.attention.cases import Case, Entry
from benchmarks.attention.contenders import TORCH
from benchmarks.attention.workload import Workload

MIB = 2**20
SHORT = (128, 512)


@dataclasses.dataclass(frozen=True)
class Check:
    """One number that a case must reach.

    Attributes:
      what: in words.
      case: its name.
      of: the entry that is judged.
      must: the bound; the number may be at least, or at most, this.
      aim: a stricter bound.
      against: entries to compare with, of which the best counts; none: the number itself is judged.
      measured: `seconds` or `temporaries` (MiB where nothing is compared).
      faster: the number is how many times faster `of` is, at least; otherwise how many times as much, at most.
    """

    what: str
    case: str
    of: Entry
    must: float
    aim: float
    against: tuple[Entry, ...] = ()
    measured: str = "seconds"
    faster: bool = False


def _entry(contender: str, program: str, length: int, **others: Any) -> Entry:
    return Entry(contender, Workload(program, length, **others))


def _jax_nn(program: str, length: int, must: float, aim: float) -> Check:
    of, against = (_entry(name, program, length) for name in ("blockwise", "jax_nn"))
    what = f"{program} {length}: times faster than jax.nn"
    return Check(what, of.workload.name, of, must, aim, (against,), faster=True)


def _torch(program: str, must: float) -> Check:
    of, against = (_entry(name, program, 8192) for name in ("blockwise", TORCH))
    return Check(f"{program} 8192: times the seconds of torch", f"torch-{program}", of, must, 1.0, (against,))


def _short(program: str, length: int) -> Check:
    best = tuple(_entry(name, program, length) for name in ("reference", "jax_nn"))
    what = f"{program} {length}: auto's seconds over the best of reference and jax.nn"
    return Check(what, f"short-{program}-{length}", _entry("auto", program, length), 1.05, 1.0, best)


def _t5(length: int) -> list[Check]:
    of, against = (_entry("blockwise", "backward", length, bias=bias) for bias in ("t5", "none"))
    seconds = Check(
        f"backward {length}: lazy T5 bias, times the seconds without", f"t5-{length}", of, 1.4, 1.2, (against,)
    )
    words = f"backward {length}: lazy T5 bias, times the temporaries without"
    return [seconds, dataclasses.replace(seconds, what=words, must=2.0, aim=1.2, measured="temporaries")]


def _window(program: str) -> list[Check]:
    case = f"window-{program}"
    window, half = (_entry("blockwise", program, length, mask="window:512") for length in (16384, 8192))
    full = _entry("blockwise", program, 16384)
    words = f"{program} 16384: window 512, times faster than full"
    linear = f"{program}: window 512, seconds at 16384 over those at 8192"
    return [
        Check(words, case, window, 6.0, 10.0, (full,), faster=True),
        Check(linear, case, window, 2.2, 2.05, (half,)),
    ]


def _grouped(program: str) -> Check:
    few, all_heads = (_entry("blockwise", program, 4096, kv_heads=heads) for heads in (1, None))
    what = f"{program} 4096: K = 1, times the seconds of K = 8"
    return Check(what, f"grouped-{program}", few, 1.0, 0.95, (all_heads,))


_JAX_NN = [
    _jax_nn("forward", 4096, 4.5, 6.0),
    _jax_nn("forward", 8192, 6.0, 8.0),
    _jax_nn("backward", 4096, 2.5, 4.0),
    _jax_nn("backward", 8192, 6.0, 8.0),
]
CHECKS = [
    *_JAX_NN,
    Check("backward 8192: MiB of temporaries", "backward-8192", _JAX_NN[-1].of, 128.0, 96.0, (), "temporaries"),
    _torch("forward", 1.3),
    _torch("backward", 1.4),
    *_t5(4096),
    *_t5(8192),
    *(_short(program, length) for program in ("forward", "backward") for length in SHORT),
    *_window("forward"),
    *_window("backward"),
    _grouped("forward"),
    _grouped("backward"),
]


def cases() -> list[Case]:
    """What the checks need, in their order."""
    entries: dict[str, dict[Entry, None]] = {}
    for check in CHECKS:
        entries.setdefault(check.case, {}).update(dict.fromkeys((check.of, *check.against)))
    return [Case(name, tuple(found)) for name, found in entries.items()]


def judge(results: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each check found in the results of a record.

    Returns:
      for each check `what`, `case`, `must`, `aim`, `at_least`, `found` (a spread, or None) and `verdict`: `aim`,
      `pass`, `even` (the median misses, but the bound lies within the quartiles), `miss` or `not measured`.
    """
    return [_judge(check, {result["name"]: result for result in results}) for check in CHECKS]


def _judge(check: Check, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    naming = Case(check.case, ())
    missing = any(naming.result_name(entry) not in results for entry in (check.of, *check.against))
    found = None if missing else _number(check, [results[naming.result_name(e)] for e in (check.of, *check.against)])
    return {
        "what": check.what,
        "case": check.case,
        "must": check.must,
        "aim": check.aim,
        "at_least": check.faster,
        "found": found and dataclasses.asdict(found),
        "verdict": _verdict(check, found),
    }


def _number(check: Check, results: list[Mapping[str, Any]]) -> measure.Spread:
    if check.measured == "temporaries":
        sizes = [result["bytes"]["temporaries"] for result in results]
        return measure.Spread.of([sizes[0] / min(sizes[1:], default=MIB)])
    of, *others = (measure.Spread(**result["seconds"]) for result in results)
    if not others:
        return of
    best = min(others, key=lambda spread: spread.median)
    return measure.ratio(best, of) if check.faster else measure.ratio(of, best)


def _verdict(check: Check, found: measure.Spread | None) -> str:
    if found is None:
        return "not measured"
    for word, bound in (("aim", check.aim), ("pass", check.must)):
        if found.median >= bound if check.faster else found.median <= bound:
            return word
    return "even" if found.low <= check.must <= found.high else "miss"
