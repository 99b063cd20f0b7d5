"""What T5X's configuration files refer to. T5X itself is not needed."""
