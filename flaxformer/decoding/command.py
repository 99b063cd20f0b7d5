"""`flaxformer generate`: text from a published model's folder.

    flaxformer generate t5-v1_1-small "translate English to German: The house is small."
    flaxformer generate gpt2 "Once upon a time" --temperature 0.8 --top-p 0.9 --max-new-tokens 50
    flaxformer generate bart-large-cnn --beams 4 < article.txt
    flaxformer generate my-model "13959 1566 12 2968 10 1" --ids

Texts come before flags; each, or each line of the standard input, is one input. The folder's tokenizer turns it into
ids and back (extra `tokenizers`); with `--ids`, or in a folder without a tokenizer, ids come in and go out. Only the
flags say how to search: the defaults in generation_config.json are for another library's search, except for the ids of
start and end.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from flaxformer.data.tokenizers import Tokenizer, load_tokenizer
from flaxformer.decoding.generation import generate
from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.strategies.base import Strategy
from flaxformer.decoding.strategies.beam import BeamSearch
from flaxformer.decoding.strategies.greedy import Greedy
from flaxformer.decoding.strategies.sample import Sample
from flaxformer.weights.pretrained import load_pretrained
from flaxformer.weights.pretrained.files import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `flaxformer generate`."""
    parser.add_argument("folder", metavar="FOLDER", help="config.json, weights, and tokenizer files if there are any")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="what to read (default: lines of standard input)")
    parser.add_argument("--ids", action="store_true", help="texts are ids, with spaces between, and so is the result")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="tokens to write at most (default: 64)")
    parser.add_argument("--beams", type=int, default=1, help="width of a beam search (default: 1, greedy)")
    parser.add_argument("--n-best", type=int, default=1, help="results of the beam search per text (default: 1)")
    parser.add_argument("--temperature", type=float, help="draw tokens at this temperature")
    parser.add_argument("--top-k", type=int, help="draw among the k best tokens")
    parser.add_argument("--top-p", type=float, help="draw among the best tokens of this probability together")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="to compute in")


def run(arguments: argparse.Namespace) -> None:
    """Generates, and prints one line per result; with scores where there are several.

    Args:
      arguments: with the attributes that `add_arguments` adds.

    Raises:
      ValueError: for a folder, a text or flags that do not fit.
    """
    strategy = _strategy(arguments)
    folder = pathlib.Path(arguments.folder)
    settings = _settings(folder)
    tokenizer = None if arguments.ids else load_tokenizer(folder)
    rows = list(_read_rows(arguments, tokenizer))
    model, variables = load_pretrained(folder, dtype=arguments.dtype)
    found = generate(
        model,
        variables,
        _batch(rows, settings["pad_id"]),
        strategy=strategy,
        max_new_tokens=arguments.max_new_tokens,
        rng=jax.random.PRNGKey(arguments.seed),
        bos_id=settings["bos_id"] if ModelSession(model).has_encoder else None,
        **{name: settings[name] for name in ("eos_id", "pad_id")},
    )
    tokens, scores, lengths = (np.asarray(x) for x in found)
    for item in range(len(rows)):
        for place in range(tokens.shape[1]):
            ids = tokens[item, place, : lengths[item, place]].tolist()
            text = " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(_before(ids, settings["eos_id"]))
            print(text if tokens.shape[1] == 1 else f"{scores[item, place]:.4f}\t{text}")


def _strategy(arguments: argparse.Namespace) -> Strategy:
    drawn = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p")}
    drawn = {name: value for name, value in drawn.items() if value is not None}
    if drawn and (arguments.beams != 1 or arguments.n_best != 1):
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in drawn)
        raise ValueError(f"{flags} came with --beams or --n-best; expected drawing or a beam search. Leave one out.")
    if drawn:
        return Sample(**drawn)
    if arguments.beams == 1 and arguments.n_best == 1:
        return Greedy()
    return BeamSearch(num_beams=arguments.beams, num_return=arguments.n_best)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """The ids of start, end and padding: generation_config.json's before config.json's."""
    values: dict[str, Any] = dict(read_json(folder / "config.json"))
    if (folder / "generation_config.json").is_file():
        special = read_json(folder / "generation_config.json")
        values |= {name: value for name, value in special.items() if value is not None}
    ends = values.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends
    if not ends:
        raise ValueError(f"{folder} names no eos_token_id; expected one in config.json or generation_config.json.")
    pad = values.get("pad_token_id")
    start = values.get("decoder_start_token_id", values.get("bos_token_id"))
    return {"eos_id": ends, "pad_id": ends[0] if pad is None else pad, "bos_id": start}


def _read_rows(arguments: argparse.Namespace, tokenizer: Tokenizer | None) -> Iterator[list[int]]:
    for text in arguments.texts or (line.rstrip("\n") for line in sys.stdin):
        if tokenizer is not None:
            yield tokenizer.encode(text)
            continue
        try:
            yield [int(word) for word in text.split()]
        except ValueError:
            raise ValueError(
                f"{text!r} came; expected ids with spaces between, since "
                f"{'--ids was given' if arguments.ids else f'{arguments.folder} holds no tokenizer'}."
            ) from None


def _batch(rows: Sequence[Sequence[int]], pad_id: int) -> Any:
    if not rows or not all(rows):
        raise ValueError(f"there are {len(rows)} texts, some without a token; expected at least one token in each.")
    longest = max(map(len, rows))
    return np.array([[*row, *[pad_id] * (longest - len(row))] for row in rows], np.int32)


def _before(ids: Sequence[int], ends: Sequence[int]) -> Sequence[int]:
    return ids[:-1] if ids and ids[-1] in ends else ids
