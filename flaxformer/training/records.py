"""What a run leaves to look at: metrics as JSON lines and for TensorBoard, and a picture of the loss.

`metrics.jsonl` has one line per recorded step. A line is written before the checkpoint of its step, and a run that goes
on from a checkpoint first drops the lines after it, so that after any interruption every step is there once.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flaxformer.extras import require

METRICS, PLOT, TENSORBOARD = "metrics.jsonl", "loss.png", "tensorboard"


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The recorded steps of the run in `folder`, in order; a line cut off by a kill is no step."""
    path = pathlib.Path(folder) / METRICS
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for line in lines if (record := _parse(line)) is not None]


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


class Recorder:
    """Writes the metrics of a run.

    Args:
      folder: of the run; made if needed.
      start_step: the step that the run goes on from; records of later steps are dropped.
      tensorboard: also write for TensorBoard.
    """

    def __init__(self, folder: str | os.PathLike, start_step: int = 0, tensorboard: bool = True):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [record for record in read(folder) if record["step"] <= start_step]
        temporary = self.folder / f"{METRICS}.tmp"
        temporary.write_text("".join(map(_line, kept)))
        os.replace(temporary, self.folder / METRICS)
        self._file = (self.folder / METRICS).open("a")
        self._board = None
        if tensorboard:
            writer = require("tensorboardX", extra="train").SummaryWriter
            self._board = writer(str(self.folder / TENSORBOARD), purge_step=start_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of a step; what is written survives a kill of this process."""
        self._file.write(_line({"step": step, **metrics}))
        self._file.flush()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def plot(self) -> None:
        """Draws the loss of all steps so far into `loss.png`."""
        records = read(self.folder)
        figure = require("matplotlib.figure", extra="train").Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, label in (("loss", "training"), ("eval/loss", "evaluation")):
            points = [(record["step"], record[name]) for record in records if name in record]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 50 else None)
        axes.set(xlabel="step", ylabel="loss per target")
        axes.grid(alpha=0.3)
        if records:
            axes.legend()
        temporary = self.folder / f"{PLOT}.tmp"
        figure.savefig(temporary, format="png", dpi=120)
        os.replace(temporary, self.folder / PLOT)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"
