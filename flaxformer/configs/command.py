"""`flaxformer explain`: check a gin file and show what it builds."""

import argparse

from flaxformer.configs import flags
from flaxformer.configs.explanation import explain
from flaxformer.configs.inputs import parse_input
from flaxformer.configs.rendering import show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own flags."""
    parser.add_argument("files", nargs="*", metavar="FILE_OR_NAME", help="gin files, or names such as t5_1_1/small")
    parser.add_argument("--root", metavar="MACRO", help="the macro to build (default: MODEL, else ARCHITECTURE)")
    parser.add_argument(
        "--length", type=int, help="tokens per input when counting FLOPs (default: 512, if it has as many)"
    )
    parser.add_argument(
        "--input",
        dest="inputs",
        action="append",
        default=[],
        metavar="NAME=SHAPE[:DTYPE]",
        help="what an argument of the model is, for example images=1x224x224x3 (repeatable)",
    )
    flags.add_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Explains the files, or raises a `ConfigurationError` that says what is wrong in them."""
    files = flags.gin_files(arguments, arguments.files)
    explanation = explain(
        files,
        arguments.gin_bindings,
        arguments.gin_search_paths,
        root=arguments.root,
        length=arguments.length,
        inputs=dict(map(parse_input, arguments.inputs)),
    )
    show(explanation)
