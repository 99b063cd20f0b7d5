"""Greedy generation with every family of published weights, in turns with transformers on the same folders.

    python -m benchmarks.families --peer-python hf_torch=/path/python
    python -m benchmarks.families --only llama,t5 --rounds 3           # ours alone
    python -m benchmarks.families --show FOLDER/results.json

A folder with random weights of one modest size is made for each family, and `load_pretrained` reads it, as does the
peer. What both write is compared.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from benchmarks import measure, show
from benchmarks.family_sizes import FAMILIES, config_of
from benchmarks.peers import client
from flaxformer.decoding import Greedy, generate
from flaxformer.decoding.constraints import MinLength
from flaxformer.weights import load_pretrained
from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.pretrained.files import read_json
from flaxformer.weights.pretrained.loading import model_of
from flaxformer.weights.pretrained.saving import write_folder
from flaxformer.weights.restoring import abstract_params

OURS, PEER = "flaxformer", "hf_torch"
SCRIPT = Path(client.__file__).parent / "families_hf_torch.py"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked of every family.

    Attributes:
      batch: rows.
      source: tokens read per row.
      new: tokens written per row, never fewer.
    """

    batch: int
    source: int
    new: int


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(FAMILIES), help=f"some of {','.join(FAMILIES)}")
    parser.add_argument("--batch", type=int, default=4, help="rows")
    parser.add_argument("--source", type=int, default=64, help="tokens read per row")
    parser.add_argument("--new", type=int, default=64, help="tokens written per row")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each family")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before those")
    parser.add_argument("--output", default="runs/benchmarks/families", metavar="FOLDER", help="for the record")
    parser.add_argument("--show", metavar="FILE", help="print a record, and measure nothing")
    parser.add_argument("--peer-python", action="append", default=[], metavar="NAME=PATH", help="a peer's interpreter")
    return parser


def make_folder(config: Mapping[str, Any], folder: Path) -> Path:
    """Writes a folder with random weights for a configuration."""
    random = np.random.default_rng(0)

    def drawn(path: tuple[str, ...], leaf: Any) -> StoredArray:
        around = 1.0 if path[-1] == "scale" else 0.0
        return StoredArray.of(around + 0.05 * random.standard_normal(leaf.shape, np.float32))

    shapes = traverse_util.flatten_dict(dict(abstract_params(model_of(config))))
    params = {path: drawn(path, leaf) for path, leaf in shapes.items()}
    return write_folder(config, traverse_util.unflatten_dict(params), folder)


def prepare(folder: Path, request: Request) -> tuple[measure.Task, np.ndarray, int]:
    """The task that generates once with a folder, what it writes `[batch new]`, and how many parameters there are."""
    model, variables = load_pretrained(folder)
    config = read_json(folder / "config.json")
    encodes = config["is_encoder_decoder"]
    tokens = np.random.default_rng(0).integers(2, config["vocab_size"], (request.batch, request.source))
    np.save(folder / "tokens.npy", tokens)
    inputs = {"encoder_input_tokens" if encodes else "decoder_prompt_tokens": jax.numpy.asarray(tokens, "int32")}
    ids = {"eos_id": config["eos_token_id"], "bos_id": config["decoder_start_token_id"] if encodes else None}
    rules = {"constraints": (MinLength(request.new),), "max_new_tokens": request.new}

    def run(variables: Any, inputs: Any) -> Any:
        return generate(model, variables, inputs, strategy=Greedy(), **ids, **rules)

    program = measure.compile_program(run, variables, inputs)
    written = np.asarray(program.run(variables, inputs).tokens)[:, 0]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    return lambda: jax.block_until_ready(program.run(variables, inputs)), written, parameters


def measure_family(family: str, arguments: argparse.Namespace, python: str | None) -> dict[str, Any]:
    """One row of the record."""
    request = Request(arguments.batch, arguments.source, arguments.new)
    with contextlib.ExitStack() as stack:
        folder = make_folder(config_of(family), Path(stack.enter_context(tempfile.TemporaryDirectory())) / family)
        task, written, parameters = prepare(folder, request)
        timers = {OURS: functools.partial(measure.timed, task)}
        row: dict[str, Any] = {"family": family, "parameters": parameters, **dataclasses.asdict(request)}
        if python is not None:
            asked = {"folder": os.fspath(folder), "new": request.new}
            peer = stack.enter_context(client.Peer(PEER, python, os.fspath(SCRIPT), asked))
            timers[PEER] = functools.partial(peer.seconds, "greedy")
            theirs = np.asarray(peer.programs["greedy"]["tokens"])
            row |= {"same_tokens": float(np.mean(theirs == written)), "versions": peer.versions}
        seconds = measure.alternate(timers, arguments.rounds, arguments.warmup)
    row["seconds"] = {name: dataclasses.asdict(spread) for name, spread in seconds.items()}
    if python is not None:
        row["times_our_seconds"] = dataclasses.asdict(measure.ratio(seconds[PEER], seconds[OURS]))
    return row


def print_record(record: Mapping[str, Any]) -> None:
    """Prints a record as a table."""

    def speed(row: Mapping[str, Any], system: str) -> str:
        if system not in row["seconds"]:
            return "–"
        return show.number(row["batch"] * row["new"] / row["seconds"][system]["median"], 0)

    rows = [
        (
            row["family"], f"{row['parameters'] / 1e6:.0f} M", speed(row, OURS), speed(row, PEER),
            show.number(row.get("times_our_seconds", {}).get("median")), show.number(row.get("same_tokens")),
        )
        for row in record["results"]
    ]  # fmt: skip
    columns = ("family", "parameters", "tokens/s", "transformers tokens/s", "× ours", "same tokens")
    show.print_table("greedy generation by family, float32", columns, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parsed = make_parser().parse_args(arguments)
    try:
        if parsed.show:
            print_record(measure.read_record(parsed.show))
            return 0
        known = f"BENCHMARK_PEER_{PEER.upper()}" in os.environ or parsed.peer_python
        python = client.interpreters(parsed.peer_python, os.environ, (PEER,))[PEER] if known else None
        rows = [measure_family(family, parsed, python) for family in parsed.only.split(",")]
    except ValueError as error:
        print(f"families: {error}", file=sys.stderr)
        return 2
    record = {"environment": measure.environment(), "results": rows}
    print_record(record)
    print(measure.write_record(Path(parsed.output) / "results.json", "families", record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
