"""Attention alone: kernels, other libraries and variants of your own, timed in turns.

python -m benchmarks.attention                                          # kernels, jax.nn and Flax at four lengths
python -m benchmarks.attention --contenders blockwise,jax_nn,torch --lengths 4096 --peer-python torch=/path/python
python -m benchmarks.attention --mask window:512 --kv_heads 1 --dtype bfloat16 --programs decode
python -m benchmarks.attention --gin_file my_variants.gin --contenders auto,mine
python -m benchmarks.attention --preset musts --only window-forward     # one row more in the same results.json
python -m benchmarks.attention --show runs/benchmarks/attention/results.json --markdown
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.attention import cases, contenders, musts, records, tables
from benchmarks.attention.workload import BIASES, MASKS, PROGRAMS, Workload
from benchmarks.peers import client
from flaxformer.configs import flags

DEFAULTS = "auto,reference,blockwise,jax_nn,linen"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--contenders", metavar="A,B", help=f"of {', '.join(contenders.known())}, and of the gin file ({DEFAULTS})")
    add("--programs", default="forward,backward", metavar="A,B", help=f"of {', '.join(PROGRAMS)}")
    add("--lengths", default="128,512,1024,2048", metavar="A,B", help="of keys, and of queries unless decoding")
    add("--batch", type=int, default=1, help="rows")
    add("--heads", type=int, default=8, help="of queries")
    add("--kv_heads", type=int, help="of keys and values (default: as many)")
    add("--head_dim", type=int, default=64, help="size of a head")
    add("--dtype", default="float32", help="of queries, keys and values")
    add("--mask", default="causal", help=", ".join(MASKS))
    add("--bias", default="none", help=", ".join(BIASES))
    add("--preset", choices=["musts"], help="the aims that the kernels are held to; replaces all of the above")
    add("--only", metavar="A,B", help="cases, by their names; the others keep what results.json has of them")
    add("--list", action="store_true", help="print the names of the cases, and measure nothing")
    add("--rounds", type=int, default=15, help="timings of each, at most")
    add(
        "--budget", type=float, default=60.0, metavar="SECONDS", help="of timing per case: fewer rounds, but at least 3"
    )
    add("--warmup", type=int, default=1, help="rounds before those")
    add("--pause", type=float, default=0.3, metavar="SECONDS", help="of rest before every timing")
    add("--seed", type=int, default=0, help="of the random arrays")
    add("--peer-python", action="append", default=[], metavar="torch=PATH", help="an interpreter that has PyTorch")
    add("--output", default="runs/benchmarks/attention", metavar="FOLDER", help="for JSON and plots")
    add("--show", metavar="JSON", help="print and plot a record, and measure nothing")
    add("--markdown", action="store_true", help="print tables as Markdown")
    flags.add_flags(parser)
    return parser


def chosen_cases(arguments: argparse.Namespace, variants: dict[str, Any]) -> list[cases.Case]:
    """What the command line asks for, before `--only`."""
    if arguments.preset:
        return musts.cases()
    names = arguments.contenders.split(",") if arguments.contenders else [*DEFAULTS.split(","), *variants]
    fields = ("batch", "heads", "kv_heads", "head_dim", "dtype", "mask", "bias")
    rest = {name: getattr(arguments, name) for name in fields}
    workloads = [
        Workload(program, length, **rest)
        for program in arguments.programs.split(",")
        for length in _lengths(arguments.lengths)
    ]
    return cases.by_workload(list(dict.fromkeys(names)), workloads)


def run(arguments: argparse.Namespace) -> Path:
    """Measures case by case, and writes the record after each; returns its path.

    Raises:
      ValueError: for what cannot be measured, and for a record that these results do not belong to.
    """
    variants = contenders.from_gin(flags.configuration(arguments, contenders.MACROS)) if arguments.gin_file else {}
    asked = chosen_cases(arguments, variants)
    selected = select(asked, arguments.only)
    used = dict.fromkeys(entry.contender for case in selected for entry in case.entries)
    table = contenders.from_names(list(used), variants)
    options = cases.Options(
        arguments.rounds,
        arguments.budget,
        arguments.warmup,
        arguments.pause,
        arguments.seed,
        torch_interpreter(arguments),
    )
    path = Path(arguments.output) / "results.json"
    settings = {"preset": arguments.preset, "seed": arguments.seed, "flops_counted_by": cases.FLOPS_COUNTED_BY}
    record = records.start(path, settings, keep=arguments.only is not None)
    for case in selected:
        print(f"{case.name} ...", file=sys.stderr, flush=True)
        measured = cases.measure_case(case, table, options)
        record = records.add(record, measured, [case.name for case in asked])
        if arguments.preset:
            record["checks"] = musts.judge(record["results"])
        measure.write_record(path, "attention", record)
    return path


def select(asked: Sequence[cases.Case], only: str | None) -> list[cases.Case]:
    """The cases that `--only` leaves.

    Raises:
      ValueError: for names that no case has.
    """
    names = [case.name for case in asked]
    wanted = names if only is None else only.split(",")
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"--only has {', '.join(unknown)}; expected some of {', '.join(names)}.")
    return [case for case in asked if case.name in wanted]


def torch_interpreter(arguments: argparse.Namespace) -> str | None:
    """The interpreter given for PyTorch; else this one, if it has PyTorch; else None."""
    if arguments.peer_python or f"BENCHMARK_PEER_{contenders.TORCH.upper()}" in os.environ:
        return client.interpreters(arguments.peer_python, os.environ, [contenders.TORCH])[contenders.TORCH]
    return sys.executable if importlib.util.find_spec("torch") else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    try:
        parsed = make_parser().parse_args(flags.rewrite(sys.argv[1:] if arguments is None else arguments))
        if parsed.list:
            print("\n".join(case.name for case in chosen_cases(parsed, {})))
            return 0
        path = Path(parsed.show) if parsed.show else run(parsed)
        record = measure.read_record(path)
        if record["checks"]:
            record["checks"] = musts.judge(record["results"])  # by what they are held to now
        tables.print_record(record, parsed.markdown)
        plots = [] if record["checks"] else tables.plot_record(record, path.parent)  # cases that belong together
    except (ValueError, ImportError) as error:
        print(f"attention: {error}", file=sys.stderr)
        return 2
    print(path, *plots, sep="\n")
    return 0


def _lengths(text: str) -> list[int]:
    try:
        return [int(length) for length in text.split(",")]
    except ValueError as error:
        raise ValueError(f"lengths is {text!r}; expected numbers with commas between, such as 128,512.") from error


if __name__ == "__main__":
    sys.exit(main())
