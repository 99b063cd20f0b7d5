"""`flaxformer convert`: weights from one form into another, array by array.

    flaxformer convert --from t5x --to safetensors models/t5_1_1_small/checkpoint_1000000 small.safetensors
    flaxformer convert --from t5x --to orbax models/t5_1_1_small converted/
    flaxformer convert --from t5x --to t5x --layout split-bias --layout stack --params-only old/ new/
    flaxformer convert --from hf --to orbax t5-v1_1-small converted/
    flaxformer convert --from t5x --to hf --config config.json models/mine mine-for-others/

The source is a model's folder, a checkpoint, or its msgpack file, in any of T5X's forms (told apart by what they hold),
or a checkpoint of this library; with `--from hf` a Hugging Face folder. Nothing is written unless all of it is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from flaxformer.extras import require
from flaxformer.weights import layouts, retired_layouts
from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.exporting import save_orbax_checkpoint, save_safetensors
from flaxformer.weights.loading import cast_floats, load_t5x_checkpoint
from flaxformer.weights.writing import save_t5x_checkpoint

LAYOUTS: Mapping[str, Callable[..., Any]] = {
    "stack": layouts.stack_layers,
    "unstack": layouts.unstack_layers,
    "share-bias": layouts.share_relative_bias,
    "split-bias": layouts.split_relative_bias,
    "join-heads": retired_layouts.join_heads,
    "dequantize": retired_layouts.dequantize,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `flaxformer convert`."""
    parser.add_argument("--from", dest="source_form", choices=["t5x", "hf"], default="t5x", help="t5x: or our own")
    parser.add_argument("--to", dest="form", choices=["safetensors", "orbax", "t5x", "hf"], required=True)
    parser.add_argument("source", metavar="SRC", help="a folder of checkpoints, a checkpoint, its msgpack file")
    parser.add_argument("destination", metavar="DST", help="a new file or folder, or the folder of checkpoint_<n>")
    parser.add_argument("--config", metavar="FILE", help="the config.json to write, for --to hf from another form")
    parser.add_argument("--step", type=int, help="which checkpoint in SRC (default: the latest)")
    parser.add_argument("--params-only", action="store_true", help="leave out the optimizer's state")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="of the parameters (default: as stored)")
    parser.add_argument(
        "--layout",
        action="append",
        default=[],
        choices=list(LAYOUTS),
        help="stacked or listed layers, a shared relative bias or one per layer, ...; in the order given",
    )
    parser.add_argument("--scan-axis", type=int, default=1, help="the axis of stacked layers (default: 1)")


def run(arguments: argparse.Namespace) -> None:
    """Converts.

    Args:
      arguments: with the attributes that `add_arguments` adds.

    Raises:
      CheckpointError: a `ValueError`, for what cannot be read, does not fit, or exists already.
    """
    state, config = _read(arguments)
    state = _laid_out(state, arguments)
    if arguments.form == "hf":
        from flaxformer.weights.pretrained.saving import write_folder

        write: Callable[..., pathlib.Path] = functools.partial(
            write_folder, config or _given_config(arguments), state["target"], arguments.destination
        )
        state = {"target": state["target"]}
    elif arguments.form == "safetensors":
        write = functools.partial(save_safetensors, arguments.destination, state["target"])
        state = {"target": state["target"]}
    else:
        save = save_orbax_checkpoint if arguments.form == "orbax" else save_t5x_checkpoint
        write = functools.partial(save, arguments.destination, state)
    with _progress(state) as report:
        path = write(report=report)
    count = len(jax.tree.leaves(state["target"]))
    print(f"{path}: {count} parameters of {_total(state['target']):,} bytes from {arguments.source}")


def _read(arguments: argparse.Namespace) -> tuple[dict[str, Any], Mapping[str, Any] | None]:
    """The state, and the published configuration where the source has one."""
    if arguments.source_form == "t5x":
        dtype = arguments.dtype
        return load_t5x_checkpoint(arguments.source, arguments.step, restore_dtype=dtype, lazy_parameters=True), None
    from flaxformer.weights.pretrained.loading import Folder

    folder = Folder.open(arguments.source)
    params = folder.parameters(folder.model())
    if arguments.dtype is not None:
        params = cast_floats(params, arguments.dtype)
    return {"target": params, "state": {"step": 0}}, folder.attributes.values


def _given_config(arguments: argparse.Namespace) -> Mapping[str, Any]:
    if arguments.config is None:
        raise CheckpointError("--to hf needs --config FILE, the config.json of the model; expected one to write.")
    from flaxformer.weights.pretrained.files import read_json

    return read_json(pathlib.Path(arguments.config))


def _laid_out(state: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    rest = dict(state.get("state", {}))
    if arguments.params_only:
        rest.pop("param_states", None)
    elif arguments.layout and rest.get("param_states") and arguments.form != "safetensors":
        raise CheckpointError(
            "the checkpoint has an optimizer's state, whose rows and columns have no counterpart in another layout; "
            "expected parameters alone. Add --params-only."
        )
    target = state["target"]
    for name in arguments.layout:
        axis = {"axis": arguments.scan_axis} if name in ("stack", "unstack") else {}
        target = LAYOUTS[name](target, **axis)
    return {**state, "target": target, "state": rest}


def _total(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if isinstance(leaf, StoredArray))


@contextlib.contextmanager
def _progress(state: Mapping[str, Any]) -> Iterator[Callable[[str, int], None]]:
    """A bar over the bytes of `state` on a terminal."""
    rich = require("rich.progress", extra="weights")
    bar = rich.Progress(
        rich.TextColumn("{task.fields[array]}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
        transient=True,
    )
    bar.disable = not bar.console.is_terminal
    task = bar.add_task("converting", total=_total(state), array="")
    with bar:
        yield lambda name, nbytes: bar.update(task, advance=nbytes, array=name[-48:])
