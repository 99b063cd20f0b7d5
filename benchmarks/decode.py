"""Generation with any gin model: tokens per second, share of what the machine allows, memory, and time to compile.

    python -m benchmarks.decode --model t5_1_1/small
    python -m benchmarks.decode --peers --peer-python hf_flax=/path/python --peer-python ctranslate2=/path/python
    python -m benchmarks.decode --only rows --output FOLDER            # a part; runs into the same folder add up
    python -m benchmarks.decode --show FOLDER/results.json

The limit of a case is the longer of two times: reading the decoder's weights and the keys and values written so far
once per step, at the measured rate of reading; and all multiplications, at the measured rate of a matrix product.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from benchmarks import measure, show
from benchmarks.decode_work import GROUPS, Case, Generator
from benchmarks.peers import client
from benchmarks.step_time import peer_shape, read_configuration
from flaxformer.configs import flags
from flaxformer.configs.loading import default_root

OURS = "flaxformer"
INT8 = "flaxformer int8"
PREFIX = "decode_"
SCRIPTS = {path.stem.removeprefix(PREFIX): path for path in Path(client.__file__).parent.glob(f"{PREFIX}*.py")}
ALIKE = ("machine", "versions", "flags")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="t5_1_1/small", help="a gin file, or the name of a shipped one")
    parser.add_argument("--root", metavar="MACRO", help="the macro to build (default: MODEL, else ARCHITECTURE)")
    parser.add_argument("--dtype", default="float32", help="bound to ACTIVATION_DTYPE, where the file has that macro")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--scanned", default="t5_1_1/scanned.gin", help="the gin file that scans the model's layers")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each case")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those")
    parser.add_argument("--output", default="runs/benchmarks/decode", metavar="FOLDER", help="for JSON and plots")
    parser.add_argument("--fresh", action="store_true", help="start the record anew")
    parser.add_argument("--show", metavar="FILE", help="print a record, and measure nothing")
    parser.add_argument("--peers", action="store_true", help="measure other implementations in turns with ours")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    parser.add_argument("--int8", action="store_true", help="measure int8 weights too (`prepare_weights`)")
    flags.add_flags(parser)
    return parser


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, and returns what is new in the record; README.md lists its keys.

    Raises:
      ValueError: for a model that cannot be built or measured, and for peers that cannot take part.
    """
    cases = _chosen(arguments.only)
    gin_files = list(arguments.gin_file)
    configuration = read_configuration(arguments)
    peers = client.interpreters(arguments.peer_python, os.environ, SCRIPTS) if arguments.peers else {}
    shape = peer_shape(arguments, configuration) if peers else {}
    settings = {"model": [arguments.model, *gin_files], "bindings": list(arguments.gin_bindings)}
    generators = {False: Generator(_built(arguments, configuration))}
    if any(case.scanned for case in cases):
        arguments.gin_file = [*gin_files, arguments.scanned]
        generators[True] = Generator(_built(arguments, read_configuration(arguments)))
    ours = {OURS: jnp.float32} | ({INT8: jnp.int8} if arguments.int8 else {})
    ready = {
        f"{system}/{case.name}": generators[case.scanned].prepare(case, dtype)
        for case in cases
        for system, dtype in ours.items()
    }
    asked = [dataclasses.asdict(case) | {"name": case.name} for case in cases if not case.scanned]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(client.Peer(name, python, SCRIPTS[name], {"shape": shape, "cases": asked}))
            for name, python in peers.items()
        ]
        _check_parameters(running, generators[False])
        seconds, rates = _measure(ready, running, arguments.rounds, arguments.warmup)
    return {
        "environment": measure.environment() | {"peers": {peer.name: peer.versions for peer in running}},
        "settings": settings | {"parameters": generators[False].parameters},
        "results": _results(cases, generators, ready, running, seconds, rates),
    }


def _chosen(text: str) -> list[Case]:
    groups = [name.strip() for name in text.split(",")]
    if unknown := [name for name in groups if name not in GROUPS]:
        raise ValueError(f"--only has {', '.join(map(repr, unknown))}; expected some of {', '.join(GROUPS)}.")
    return list(dict.fromkeys(case for name in groups for case in GROUPS[name]))


def _built(arguments: argparse.Namespace, configuration: Any) -> Any:
    built = configuration.build(arguments.root or default_root(configuration))
    return getattr(built, "module", built)


def _check_parameters(peers: Sequence[client.Peer], ours: Generator) -> None:
    for peer in peers:
        if peer.parameters != ours.parameters:
            raise ValueError(
                f"{peer.name} has {peer.parameters:,} parameters and the model {ours.parameters:,}; expected equal "
                "models. A binding beside the sizes keeps them from being compared."
            )


def _measure(ready: Mapping[str, Any], peers: Sequence[client.Peer], rounds: int, warmup: int) -> tuple[Any, Any]:
    """The seconds of everything by `system/case`, and the rates of the machine in the same rounds."""
    calibrating = {"matmul": measure.matmul_task(), "read": measure.read_task()}
    timers = {name: functools.partial(measure.timed, task) for name, (task, _) in calibrating.items()}
    for name, (task, _, _) in ready.items():
        timers[name] = functools.partial(measure.timed, task)
        case = name.split("/")[-1]
        for peer in peers:
            for program in peer.programs:
                if program.split("/")[-1] == case:
                    timers[f"{_system(peer, program)}/{case}"] = functools.partial(peer.seconds, program)
    seconds = measure.alternate(timers, rounds, warmup)
    return seconds, measure.calibration(seconds, {name: work for name, (_, work) in calibrating.items()})


def _system(peer: client.Peer, program: str) -> str:
    """A peer's name, with the kind of its arithmetic where it has several: `KIND/CASE`."""
    kind, slash, _ = program.partition("/")
    return f"{peer.name} {kind}" if slash else peer.name


def _results(cases, generators, ready, peers, seconds, rates) -> list[dict[str, Any]]:
    results = []
    for case in cases:
        work = generators[case.scanned].work(case)
        limit = work.seconds(
            rates["matmul_flops_per_second"]["median"], rates["read_bytes_per_second"]["median"]
        )  # of every system, in float32
        shared = {"case": case.name, **dataclasses.asdict(case), **dataclasses.asdict(work), "limit_seconds": limit}
        shared["calibration"] = rates
        systems = {
            system: _known(*ready[name]) for system in (OURS, INT8) if (name := f"{system}/{case.name}") in ready
        }
        for peer in peers:
            for name, told in peer.programs.items():
                if name.split("/")[-1] == case.name:
                    systems[_system(peer, name)] = told
        for system, told in systems.items():
            results.append(shared | _result(system, case, told, limit, seconds))
    return results


def _known(_: measure.Task, program: measure.Program, first_call_seconds: float) -> dict[str, Any]:
    return {
        "trace_seconds": program.trace_seconds,
        "compile_seconds": program.compile_seconds,
        "first_call_seconds": first_call_seconds,
        "bytes": program.bytes,
    }


def _result(system: str, case: Case, told: Mapping[str, Any], limit: float, seconds: Mapping[str, Any]):
    spread = seconds[f"{system}/{case.name}"]
    unknown = {"trace_seconds": None, "compile_seconds": None, "bytes": None}
    return {
        "name": f"{system}/{case.name}",
        "system": system,
        "seconds": dataclasses.asdict(spread),
        "tokens_per_second": case.batch * case.new / spread.median,
        "times_limit": spread.median / limit,
        "times_our_seconds": dataclasses.asdict(measure.ratio(spread, seconds[f"{OURS}/{case.name}"])),
        **unknown,
        **told,
    }


def merge(found: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """The record with new results in the place of earlier ones of the same name.

    Raises:
      ValueError: when the two come from another machine, other versions, flags or models.
    """
    if found is None:
        return dict(new)
    differing = [name for name in ALIKE if _about(found, name) != _about(new, name)]
    differing += ["settings"] * (found["settings"] != new["settings"])
    if differing:
        raise ValueError(
            f"the record was measured with another {', '.join(differing)}; expected the same for all its results. "
            "Give another --output, or --fresh."
        )
    peers = found["environment"].get("peers", {}) | new["environment"].get("peers", {})
    results = {result["name"]: result for result in [*found["results"], *new["results"]]}
    return {**new, "environment": new["environment"] | {"peers": peers}, "results": list(results.values())}


def _about(record: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key: value for key, value in record["environment"][part].items() if key != "load"}


def print_record(record: Mapping[str, Any]) -> None:
    """Prints a record as a table."""
    columns = (
        "case", "system", "seconds [quartiles]", "× ours", "tokens/s", "ms/step", "× limit", "peak MiB", "trace s",
        "compile s",
    )  # fmt: skip
    rows = [
        (
            result["case"],
            result["system"],
            show.spread(result["seconds"]),
            "–" if result["system"] == OURS else show.number(result["times_our_seconds"]["median"]),
            show.number(result["tokens_per_second"], 0),
            show.number(1e3 * result["seconds"]["median"] / result["new"]),
            show.number(result["times_limit"]),
            show.mebibytes((result["bytes"] or {}).get("peak")),
            show.number(result["trace_seconds"]),
            show.number(result["compile_seconds"]),
        )
        for result in record["results"]
    ]
    show.print_table(title(record), columns, rows, note=_rates(record))


def title(record: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    settings = record["settings"]
    return f"{', '.join([*settings['model'], *settings['bindings']])}: {settings['parameters']:,} parameters"


def _rates(record: Mapping[str, Any]) -> str:
    found = [(r["calibration"]["matmul_flops_per_second"], r["calibration"]["read_bytes_per_second"]) for r in
             record["results"]]  # fmt: skip
    matmul, read = ([rate[i]["median"] for rate in found] for i in (0, 1))
    return (
        f"float32 matmul {min(matmul) / 1e9:,.0f} to {max(matmul) / 1e9:,.0f} GFLOP/s, memory read "
        f"{min(read) / 1e9:,.1f} to {max(read) / 1e9:,.1f} GB/s, in the same rounds"
    )


def plot_record(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws tokens per second against the batch and against the number of new tokens; returns the files."""
    results = [result for result in record["results"] if not result["scanned"]]
    paths = []
    for axis, other, label in (("batch", "new", "batch"), ("new", "batch", "new tokens")):
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in results:
            kind = "greedy" if result["beams"] == 1 else f"beam {result['beams']}"
            name = f"{result['system']}, {kind}, {other} {result[other]}"
            lines.setdefault(name, []).append((result[axis], result["tokens_per_second"]))
        drawn = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
        if drawn:
            path = folder / f"tokens_by_{axis}.png"
            paths.append(show.plot_lines(path, title(record), {"tokens per second": drawn}, label))
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    try:
        parsed = make_parser().parse_args(flags.rewrite(sys.argv[1:] if arguments is None else arguments))
        if parsed.show:
            print_record(measure.read_record(parsed.show))
            return 0
        folder = Path(parsed.output)
        path = folder / "results.json"
        earlier = measure.read_record(path) if path.exists() and not parsed.fresh else None
        record = merge(earlier, run(parsed))
        print_record(record)
        written = [measure.write_record(path, "decode", record), *plot_record(record, folder)]
    except (ValueError, ImportError) as error:
        print(f"decode: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
