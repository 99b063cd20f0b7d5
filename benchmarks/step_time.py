"""Forward pass and training step of any gin model: seconds, tokens per second, memory, and time to compile.

    python -m benchmarks.step_time --model t5_1_1/small --batch 8 --source 128 --target 128
    python -m benchmarks.step_time --model my.gin --gin.NUM_HEADS=8 --programs train_with_metrics
    python -m benchmarks.step_time --peers --peer-python hf_torch=/path/python --peer-python hf_flax=/path/python

Floating-point operations are counted by a formula over the traced forward pass: two for each multiplication of its
matrix products and convolutions, nothing for anything else; a training step counts three times that, so that work
done twice (rematerialisation) earns nothing. The share of the machine is that count per second, divided by the rate of
a large float32 matrix product timed in the same rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure, show
from benchmarks.peers import client
from benchmarks.programs import PROGRAMS, Ready, Subject, Workload, prepare
from flaxformer.configs import Configuration, flags
from flaxformer.configs.loading import default_root

OURS = "flaxformer"
FLOPS_COUNTED_BY = "formula: 2 per multiplication of the products in the traced forward pass; training 3 times that"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_time", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="t5_1_1/small", help="a gin file, or the name of a shipped one")
    parser.add_argument("--root", metavar="MACRO", help="the macro to build (default: MODEL, else ARCHITECTURE)")
    parser.add_argument("--dtype", default="float32", help="bound to ACTIVATION_DTYPE, where the file has that macro")
    parser.add_argument("--batch", type=int, default=8, help="rows")
    parser.add_argument("--source", type=int, default=128, help="tokens encoded per row")
    parser.add_argument("--target", type=int, default=128, help="tokens decoded per row")
    parser.add_argument("--programs", default="forward,train", help=f"some of {','.join(PROGRAMS)}")
    parser.add_argument("--rounds", type=int, default=7, help="timings of each program")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those")
    parser.add_argument("--no-donate", action="store_true", help="training steps keep the state they are given")
    parser.add_argument("--output", default="runs/benchmarks/step_time", metavar="FOLDER", help="for JSON and plot")
    parser.add_argument("--peers", action="store_true", help="measure other implementations in turns with ours")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    flags.add_flags(parser)
    return parser


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, and returns the record that `main` writes; README.md lists its keys.

    Raises:
      ValueError: for a model that cannot be built or measured, and for peers that cannot take part.
    """
    programs = _chosen_programs(arguments.programs)
    workload = Workload(arguments.batch, arguments.source, arguments.target)
    configuration = read_configuration(arguments)
    peers = client.interpreters(arguments.peer_python, os.environ) if arguments.peers else {}
    shape = peer_shape(arguments, configuration) if peers else {}
    built = configuration.build(arguments.root or default_root(configuration))
    subject = Subject(getattr(built, "module", built), workload)
    ready = {name: prepare(subject, name, not arguments.no_donate) for name in programs}
    settings = _settings(arguments, configuration, subject)
    with contextlib.ExitStack() as stack:
        asked = {**dataclasses.asdict(workload), "shape": shape, "donate": not arguments.no_donate}
        asked["programs"] = [name for name in programs if name in ("forward", "train")]
        running = [
            stack.enter_context(client.Peer(name, python, client.SCRIPTS[name], asked))
            for name, python in peers.items()
        ]
        _check_parameters(running, subject)
        seconds, work = _measure(ready, running, arguments.rounds, arguments.warmup)
    return _record(settings, subject, ready, running, seconds, work)


def read_configuration(arguments: argparse.Namespace) -> Configuration:
    """The gin files with `--dtype` bound before what the command line binds itself."""
    arguments.gin_file = [arguments.model, *arguments.gin_file]
    macros = [arguments.root] if arguments.root else []
    found = flags.configuration(arguments, macros)
    if "ACTIVATION_DTYPE" not in found:
        return found
    arguments.gin_bindings = [f"ACTIVATION_DTYPE = {arguments.dtype!r}", *arguments.gin_bindings]
    return flags.configuration(arguments, macros)


def peer_shape(arguments: argparse.Namespace, configuration: Configuration) -> dict[str, Any]:
    """The shape of the model as Hugging Face's configuration names it.

    Raises:
      ValueError: for a model that is not T5 1.1, or not in float32: the peers would do other work.
    """
    macros = {
        "vocab_size": "NUM_EMBEDDINGS",
        "d_model": "EMBED_DIM",
        "d_kv": "HEAD_DIM",
        "d_ff": "MLP_DIM",
        "num_layers": "NUM_ENCODER_LAYERS",
        "num_decoder_layers": "NUM_DECODER_LAYERS",
        "num_heads": "NUM_HEADS",
    }
    dtype = configuration.build("ACTIVATION_DTYPE") if "ACTIVATION_DTYPE" in configuration else None
    if not arguments.model.startswith("t5_1_1/") or dtype != "float32":
        raise ValueError(
            f"peers were asked for beside {arguments.model} in {dtype}; expected t5_1_1/SIZE in float32, which they "
            "can build too. Leave out --peers."
        )
    return {name: configuration.build(macro) for name, macro in macros.items()} | {"feed_forward_proj": "gated-gelu"}


def _chosen_programs(text: str) -> list[str]:
    programs = [name.strip() for name in text.split(",")]
    if unknown := [name for name in programs if name not in PROGRAMS]:
        raise ValueError(f"programs has {', '.join(map(repr, unknown))}; expected some of {', '.join(PROGRAMS)}.")
    return list(dict.fromkeys(programs))


def _settings(arguments: argparse.Namespace, configuration: Configuration, subject: Subject) -> dict[str, Any]:
    return {
        "model": [str(file) for file in arguments.gin_file],
        "bindings": list(arguments.gin_bindings),
        "files": [Path(file).name for file in configuration.files],
        "batch": arguments.batch,
        "source": arguments.source,
        "target": arguments.target,
        "rounds": arguments.rounds,
        "warmup": arguments.warmup,
        "donate": not arguments.no_donate,
        "objective": subject.objective,
        "optimizer": "adamw",
        "parameters": subject.parameters,
        "flops_counted_by": FLOPS_COUNTED_BY,
    }


def _check_parameters(peers: Sequence[client.Peer], subject: Subject) -> None:
    for peer in peers:
        if peer.parameters != subject.parameters:
            raise ValueError(
                f"{peer.name} has {peer.parameters:,} parameters and the model {subject.parameters:,}; expected equal "
                "models. A binding beside the sizes keeps them from being compared."
            )


def _measure(
    ready: Mapping[str, Ready], peers: Sequence[client.Peer], rounds: int, warmup: int
) -> tuple[dict[str, measure.Spread], dict[str, float]]:
    """The seconds of everything by `system/program`, and the work of the calibrating tasks."""
    timers: dict[str, Callable[[], float]] = {}
    calibrating = {"matmul": measure.matmul_task(), "read": measure.read_task()}
    for name, (task, _) in calibrating.items():
        timers[name] = functools.partial(measure.timed, task)
    for name, program in ready.items():
        timers[f"{OURS}/{name}"] = functools.partial(measure.timed, program.task)
        for peer in peers:
            if name in peer.programs:
                timers[f"{peer.name}/{name}"] = functools.partial(peer.seconds, name)
    return measure.alternate(timers, rounds, warmup), {name: work for name, (_, work) in calibrating.items()}


def _record(settings, subject, ready, peers, seconds, work) -> dict[str, Any]:
    results, ratios = [], []
    for name, program in ready.items():
        known = {
            "trace_seconds": program.program.trace_seconds,
            "compile_seconds": program.program.compile_seconds,
            "first_call_seconds": program.first_call_seconds,
            "bytes": program.program.bytes,
            "compiler_estimate": program.program.compiler,
        }
        results.append(_result(OURS, name, program.flops, subject.tokens, known, seconds, work))
        for peer in peers:
            if name in peer.programs:
                results.append(
                    _result(peer.name, name, program.flops, subject.tokens, peer.programs[name], seconds, work)
                )
                ratios.append(_ratio(peer.name, name, seconds))
    return {
        "environment": measure.environment() | {"peers": {peer.name: peer.versions for peer in peers}},
        "settings": settings,
        "calibration": measure.calibration(seconds, work),
        "results": results,
        "ratios": ratios,
    }


def _result(system, program, flops, tokens, known, seconds, work) -> dict[str, Any]:
    name = f"{system}/{program}"
    share = measure.matmul_share(seconds, work, name, flops)
    unknown = {"trace_seconds": None, "compile_seconds": None, "bytes": None, "compiler_estimate": None}
    return {
        "name": name,
        "system": system,
        "program": program,
        "seconds": dataclasses.asdict(seconds[name]),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds[name].median,
        "flops": flops,
        "flops_per_second": flops / seconds[name].median,
        "matmul_share": share,
        **unknown,
        **known,
    }


def _ratio(peer: str, program: str, seconds: Mapping[str, measure.Spread]) -> dict[str, Any]:
    found = measure.ratio(seconds[f"{peer}/{program}"], seconds[f"{OURS}/{program}"])
    return {"program": program, "peer": peer, "times_our_seconds": dataclasses.asdict(found)}


def print_record(record: Mapping[str, Any]) -> None:
    """Prints a record as a table."""
    columns = (
        "program", "system", "seconds [quartiles]", "× ours", "tokens/s", "of matmul",
        "temporary MiB", "peak MiB", "trace s", "compile s", "first call s",
    )  # fmt: skip
    ratios = {(r["peer"], r["program"]): show.number(r["times_our_seconds"]["median"]) for r in record["ratios"]}
    rows = []
    for result in record["results"]:
        size = result["bytes"] or {}
        rows.append(
            (
                result["program"],
                result["system"],
                show.spread(result["seconds"]),
                ratios.get((result["system"], result["program"]), "–"),
                show.number(result["tokens_per_second"], 0),
                f"{result['matmul_share']:.0%}",
                show.mebibytes(size.get("temporaries")),
                show.mebibytes(size.get("peak")),
                show.number(result["trace_seconds"]),
                show.number(result["compile_seconds"]),
                show.number(result["first_call_seconds"]),
            )
        )
    show.print_table(title(record), columns, rows, note=_rates(record))


def title(record: Mapping[str, Any]) -> str:
    """What was measured, in a line."""
    settings = record["settings"]
    model = ", ".join([*settings["model"], *settings["bindings"]])
    return (
        f"{model}: batch {settings['batch']}, source {settings['source']}, target {settings['target']}, "
        f"{settings['parameters']:,} parameters, {settings['rounds']} rounds"
    )


def _rates(record: Mapping[str, Any]) -> str:
    matmul = record["calibration"]["matmul_flops_per_second"]["median"]
    read = record["calibration"]["read_bytes_per_second"]["median"]
    return f"float32 matmul {matmul / 1e9:,.0f} GFLOP/s, memory read {read / 1e9:,.1f} GB/s, in the same rounds"


def plot_record(record: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draws the seconds of a record, a panel per program."""
    groups: dict[str, dict[str, Any]] = {}
    for result in record["results"]:
        groups.setdefault(result["program"], {})[result["system"]] = result["seconds"]
    return show.plot_bars(path, title(record), groups, "seconds, median and quartiles")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    try:
        parsed = make_parser().parse_args(flags.rewrite(sys.argv[1:] if arguments is None else arguments))
        record = run(parsed)
        folder = Path(parsed.output)
        print_record(record)
        written = measure.write_record(folder / "results.json", "step_time", record)
        plot = plot_record(record, folder / "seconds.png")
    except (ValueError, ImportError) as error:
        print(f"step_time: {error}", file=sys.stderr)
        return 2
    print(f"{written}\n{plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
