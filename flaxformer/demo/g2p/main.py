"""The demonstration: train, decode the held-out words, report."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from flaxformer.configs import flags
from flaxformer.decoding import BeamSearch, Greedy
from flaxformer.demo.g2p import dictionary as dictionaries
from flaxformer.demo.g2p.decode import Hypothesis, cross_attention, pronounce
from flaxformer.demo.g2p.dictionary import Dictionary
from flaxformer.demo.g2p.evaluate import Score, score
from flaxformer.demo.g2p.plots import attention_heat_map
from flaxformer.demo.g2p.report import rates, samples
from flaxformer.extras import require
from flaxformer.training import runner

BEAMS = 4
SAMPLES = 10
_PROGRAM = "python -m flaxformer.demo.g2p"
_MAIN_CONFIG = "demo/g2p"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration from the command line; returns the exit status, 2 for what is refused."""
    parsed = parse(arguments)
    try:
        run(parsed)
    except (ValueError, ImportError) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def run(parsed: argparse.Namespace) -> None:
    """Trains (or goes on with a run that was interrupted), decodes the held-out words and reports.

    Args:
      parsed: from `parse`.
    """
    began = time.monotonic()
    console = require("rich.console", extra="train").Console()
    configuration = flags.configuration(parsed)
    run_dir = Path(configuration.build("MODEL_DIR"))
    console.print(f"Training as {', '.join(parsed.gin_file)} says; the run lives in {run_dir}.", highlight=False)
    outcome = configuration.configured(runner.train)()
    model, variables = configuration.build("ARCHITECTURE"), {"params": outcome.state.params}

    held_out = dictionaries.take_split(dictionaries.load(), "test")
    console.print(f"Decoding {len(held_out):,} held-out words, greedily and with {BEAMS} beams.", highlight=False)
    greedy, _ = evaluate(model, variables, held_out, Greedy())
    beam, hypotheses = evaluate(model, variables, held_out, BeamSearch(num_beams=BEAMS))
    shown = choose_samples(held_out)
    picture = draw_attention(run_dir, model, variables, max(shown, key=len), hypotheses)

    metrics = run_dir / "metrics.json"
    metrics.write_text(json.dumps(summary(greedy, beam, variables, time.monotonic() - began), indent=2) + "\n")
    console.print(samples(shown, hypotheses, held_out))
    console.print(rates(greedy, beam, f"beam search, {BEAMS} beams"))
    for name, path in (("loss curve", run_dir / "loss.png"), ("attention heat map", picture), ("metrics", metrics)):
        console.print(f"{name + ':':20}{path}", highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - began:.0f} seconds in all.", highlight=False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line: T5X's gin flags, and `--run_dir` as a short form of `--gin.MODEL_DIR`."""
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Trains a small transformer to pronounce English words and shows what it says.",
    )
    parser.add_argument("--run_dir", help="where checkpoints, pictures and metrics go; default: as the gin file says")
    flags.add_flags(parser)
    parsed = parser.parse_args(flags.rewrite(sys.argv[1:] if arguments is None else arguments))
    parsed.gin_file = parsed.gin_file or [_MAIN_CONFIG]
    if parsed.run_dir is not None:
        parsed.gin_bindings.append(f"MODEL_DIR = {parsed.run_dir!r}")
    return parsed


def evaluate(
    model: Any, variables: Mapping[str, Any], held_out: Dictionary, strategy: Any
) -> tuple[Score, dict[str, list[Hypothesis]]]:
    """The score of a strategy's best hypotheses, and all hypotheses by word."""
    words = list(held_out)
    found = pronounce(model, variables, words, strategy)
    best = [hypotheses[0].pronunciation for hypotheses in found]
    return score(best, [held_out[word] for word in words]), dict(zip(words, found, strict=True))


def choose_samples(held_out: Dictionary, count: int = SAMPLES) -> list[str]:
    """Words of 8 to 12 letters, evenly spread over the alphabet; any words where there are too few of those."""
    words = sorted(word for word in held_out if 8 <= len(word) <= 12 and word.isalpha())
    words = words if len(words) >= count else sorted(held_out)
    spacing = max(len(words) // count, 1)
    return words[spacing // 2 :: spacing][:count]


def draw_attention(
    run_dir: Path, model: Any, variables: Mapping[str, Any], word: str, hypotheses: Mapping[str, Sequence[Hypothesis]]
) -> Path:
    """The heat map of the best hypothesis of `word`."""
    pronunciation = hypotheses[word][0].pronunciation
    weights = cross_attention(model, variables, word, pronunciation)
    return attention_heat_map(run_dir / "attention.png", word, pronunciation, weights)


def summary(greedy: Score, beam: Score, variables: Mapping[str, Any], seconds: float) -> dict[str, float]:
    """What `metrics.json` holds."""
    return {
        "per": beam.per,
        "wer": beam.wer,
        "greedy_per": greedy.per,
        "greedy_wer": greedy.wer,
        "examples": beam.words,
        "seconds": round(seconds, 1),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
    }
