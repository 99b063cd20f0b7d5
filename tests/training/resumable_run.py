"""A run in a process of its own, to be killed: python -m tests.training.resumable_run FOLDER SECONDS_PER_BATCH KIND."""

import sys
import time

from flaxformer.training import optimizers, runner, schedules
from flaxformer.training.step import LossConfig
from tests.training import tiny

STEPS = 60


class Slow(tiny.Source):
    """Batches that take their time, so that a kill finds the run at work."""

    def __init__(self, seconds: float, lengths: tuple[int, ...]):
        super().__init__(lengths=lengths)
        self.seconds = seconds

    def batches(self, start_step: int = 0):
        for batch in super().batches(start_step):
            time.sleep(self.seconds)
            yield batch


OPTIMIZERS = {
    "plain": lambda: optimizers.adamw(0.1),
    "full": lambda: optimizers.adafactor(
        schedules.rsqrt_with_warmup(0.1, 10), beta1=0.9, min_dim_size_to_factor=4, accumulate_steps=2
    ),
}

if __name__ == "__main__":
    folder, seconds, kind = sys.argv[1:]
    runner.train(
        tiny.Tables(dropout_rate=0.3) if kind == "plain" else tiny.EncoderDecoder(dropout_rate=0.3),
        Slow(float(seconds), lengths=(6,) if kind == "plain" else (6, 4)),
        [tiny.batch(999)],
        optimizer=OPTIMIZERS[kind](),
        loss=LossConfig(label_smoothing=0.1, z_loss=1e-4),
        steps=STEPS,
        run_dir=folder,
        log_every=4,
        save_every=5,
        eval_every=7,
        tensorboard=kind == "full",
        keep=2,
    )
