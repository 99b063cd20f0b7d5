"""What T5X's configuration files refer to, under T5X's names and arguments. T5X itself is not needed.

`flaxformer migrate` makes a file that imports `t5x` import these modules. Each is a thin wrapper: `train.train` is
`flaxformer.training.runner.train`, `adafactor.Adafactor` is `flaxformer.training.optimizers.adafactor`, and so on.
Arguments that mean nothing here are accepted; where leaving one out changes what a run does, a warning says so.
"""
