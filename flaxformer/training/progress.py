"""How far a run is: a bar on a terminal, a line per record elsewhere."""

import datetime
import time
from collections.abc import Mapping
from typing import Any

from flaxformer.extras import require


class Progress:
    """Shows steps, loss, tokens per second and the time left; a context manager.

    Args:
      steps: of the whole run.
      start_step: the step that this process starts from.
      console: a `rich.console.Console`; one for the standard output by default.
    """

    def __init__(self, steps: int, start_step: int = 0, console: Any = None):
        self._console = console or require("rich.console", extra="train").Console()
        rich = require("rich.progress", extra="train")
        self._bar = rich.Progress(
            rich.TextColumn("training"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[shown]}"),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=steps, completed=start_step, shown="")
        self._steps, self._start_step, self._start = steps, start_step, time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def advance(self) -> None:
        """One step more was started."""
        self._bar.advance(self._task)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics of a record."""
        shown = f"loss {metrics['loss']:.4f}  {metrics['tokens_per_second']:,.0f} tokens/s"
        if "eval/loss" in metrics:
            shown += f"  eval {metrics['eval/loss']:.4f}"
        self._bar.update(self._task, shown=shown)
        if not self._console.is_terminal:
            each = (time.monotonic() - self._start) / (step - self._start_step)
            left = datetime.timedelta(seconds=round(each * (self._steps - step)))
            self._console.print(f"step {step}/{self._steps}  {shown}  {left} left", highlight=False)
