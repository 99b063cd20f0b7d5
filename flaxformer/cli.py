"""The command `flaxformer`.

Each subcommand is a module with `add_arguments(parser)` and `run(arguments)`; it is imported when it is asked for. What
a module refuses (`ValueError`, `ImportError`) is printed without a traceback, and the exit status is 2.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from flaxformer.configs.flags import rewrite

COMMANDS = {
    "train": ("flaxformer.training.command", "train a model from a gin file"),
    "generate": ("flaxformer.decoding.command", "decode with a trained model"),
    "explain": ("flaxformer.configs.command", "check a gin file and show what it builds"),
    "migrate": ("flaxformer.configs.migration", "rewrite a gin file written for T5X"),
    "convert": ("flaxformer.weights.command", "convert checkpoints"),
}


def available() -> dict[str, tuple[str, str]]:
    """The commands whose code is installed: for each name its module and one line of help."""
    return {name: (module, text) for name, (module, text) in COMMANDS.items() if _exists(module)}


def _exists(module: str) -> bool:
    parent, _, name = module.rpartition(".")
    found = importlib.util.find_spec(parent)
    return found is not None and importlib.util.find_spec(module) is not None


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The parsed command line, with the chosen module's `run` as its attribute `run`."""
    parser = argparse.ArgumentParser(prog="flaxformer", description="Transformers in Flax, from gin files.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    arguments = rewrite(arguments)
    for name, (module, text) in available().items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name in arguments[:1]:
            command = importlib.import_module(module)
            command.add_arguments(subparser)
            subparser.set_defaults(run=command.run)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    try:
        parsed = parse(sys.argv[1:] if arguments is None else arguments)
        return parsed.run(parsed) or 0
    except (ValueError, ImportError) as error:
        print(f"flaxformer: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
