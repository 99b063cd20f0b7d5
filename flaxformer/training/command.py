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

Files written for T5X bind `flaxformer.t5x.train.train` in its place: see `t5x/runs/pretrain.gin`.

The flags are those of T5X: see `flaxformer.configs.flags`. What a run was started with is written to its `config.gin`.
"""

import argparse
import os
import pathlib
from collections.abc import Callable

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
    entry, folder = _entry(configuration)
    bound = configuration.bound(entry, ()).get(folder)
    if bound is not None:
        _write_config(configuration.evaluate(bound.value), arguments)
    configuration.configured(entry)()


def _entry(configuration: configs.Configuration) -> tuple[Callable[..., object], str]:
    """What the files bind, and the name of its run's folder: `runner.train`, or T5X's `train`."""
    if "flaxformer.t5x.train.train" in configuration.targets:
        from flaxformer.t5x.train import train  # files written for T5X name it

        return train, "model_dir"
    return runner.train, "run_dir"


def _write_config(run_dir: str | os.PathLike, arguments: argparse.Namespace) -> None:
    """Writes what a run was started with, as a gin file that starts it again."""
    files = [configs.find(name, arguments.gin_search_paths).absolute() for name in arguments.gin_file]
    lines = [f"include {str(file)!r}" for file in files] + arguments.gin_bindings
    folder = pathlib.Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text("".join(f"{line}\n" for line in lines))
