"""`flaxformer train`: runs `runner.train` with the arguments that gin files bind.

A run file names its parts and binds them, for example:

    from __gin__ import dynamic_registration
    from flaxformer.training import optimizers
    from flaxformer.training import runner
    import my_project.data
    include 't5_1_1/tiny.gin'

    runner.train.model = %ARCHITECTURE
    runner.train.train_data = @my_project.data.source()
    runner.train.optimizer = @optimizers.adafactor()
    runner.train.steps = %TRAIN_STEPS
    runner.train.run_dir = %MODEL_DIR
    optimizers.adafactor.learning_rate = 0.001

    flaxformer train --gin_file=run.gin --gin.TRAIN_STEPS=1000 --gin.MODEL_DIR="'runs/first'"

The flags are those of T5X: see `flaxformer.configs.flags`. What a run was started with is written to its `config.gin`.
"""

import argparse
import os
import pathlib

from flaxformer import configs
from flaxformer.configs import flags
from flaxformer.training import runner

CONFIG = "config.gin"
MACROS = ("TRAIN_STEPS", "MODEL_DIR")  # may be given on the command line although no file mentions them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `flaxformer train`."""
    flags.add_flags(parser)


def run(arguments: argparse.Namespace) -> None:
    """Trains as the gin flags say.

    Args:
      arguments: with the attributes that `add_arguments` adds.

    Raises:
      ValueError: for what is wrong in the files, and for what `runner.train` refuses.
    """
    configuration = flags.configuration(arguments, MACROS)
    bound = configuration.bound(runner.train, ()).get("run_dir")
    if bound is not None:
        _write_config(configuration.evaluate(bound.value), arguments)
    configuration.configured(runner.train)()


def _write_config(run_dir: str | os.PathLike, arguments: argparse.Namespace) -> None:
    """Writes what a run was started with, as a gin file that starts it again."""
    files = [configs.find(name, arguments.gin_search_paths).absolute() for name in arguments.gin_file]
    lines = [f"include {str(file)!r}" for file in files] + arguments.gin_bindings
    folder = pathlib.Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text("".join(f"{line}\n" for line in lines))
