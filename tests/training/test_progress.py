import io

import pytest
from rich.console import Console

from flaxformer.training.progress import Progress

METRICS = {"loss": 1.23456, "tokens_per_second": 9876.5, "eval/loss": 2.5}


@pytest.mark.parametrize("terminal", [True, False])
def test_steps_loss_speed_and_time_left_are_shown(terminal):
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=160)
    with Progress(steps=20, start_step=9, console=console) as progress:
        progress.advance()
        progress.show(10, METRICS)
    text = output.getvalue()
    for part in ("10/20", "loss 1.2346", "9,876 tokens/s", "eval 2.5000", "left"):
        assert part in text


def test_a_file_gets_one_line_per_record():
    output = io.StringIO()
    with Progress(steps=20, console=Console(file=output, force_terminal=False, width=160)) as progress:
        for step in (1, 2):
            progress.advance()
            progress.show(step, METRICS)
    assert [line.split()[1] for line in output.getvalue().splitlines()] == ["1/20", "2/20"]
