"""The peer's side of a measurement: answers requests that come as lines of JSON on the standard input.

    settings from the command line     {"shape": {...}, "batch": 8, "source": 128, "target": 128, "donate": true, ...}
    first answer                       {"peer": "hf_torch", "versions": {...}, "parameters": 76961152,
                                        "programs": {"forward": {...}, ...}}
    request, answer                    {"run": "forward", "times": 1}, {"seconds": 0.81}

What is known of a program before it is timed: `first_call_seconds`, tracing and compiling included, and for compiled
ones `trace_seconds`, `compile_seconds` and `bytes`. Only the standard library is needed here.
"""

import contextlib
import json
import os
import random
import sys
import time
from importlib.metadata import version


def settings():
    """What the measurement asks for."""
    return json.loads(sys.argv[1])


def tokens(rows, length, vocabulary, seed):
    """Random token ids as nested lists: neither padding (0) nor the end of a sequence (1)."""
    choose = random.Random(seed)
    return [[choose.randrange(2, vocabulary) for _ in range(length)] for _ in range(rows)]


def timed(task, times=1):
    """Wall seconds of `task`, which blocks until its result is there; the mean of so many runs."""
    start = time.perf_counter()
    for _ in range(times):
        task()
    return (time.perf_counter() - start) / times


def serve(peer, packages, make_tasks):
    """Answers requests until the standard input ends.

    Args:
      peer: its name.
      packages: whose versions to report.
      make_tasks: called without arguments; returns for each program the task to time and what is known of it, and the
        number of the model's parameters.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to the standard error
    with contextlib.redirect_stdout(sys.stderr):
        tasks, parameters = make_tasks()
        first = {"peer": peer, "versions": {name: version(name) for name in packages}, "parameters": parameters}
        first["programs"] = {name: known | _first_call(task, known) for name, (task, known) in tasks.items()}
        print(json.dumps(first), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            task, _ = tasks[request["run"]]
            print(json.dumps({"seconds": timed(task, request["times"])}), file=answers, flush=True)


def _first_call(task, known):
    before = known.get("trace_seconds", 0.0) + known.get("compile_seconds", 0.0)
    return {"first_call_seconds": before + timed(task)}
