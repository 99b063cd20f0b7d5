"""The kernels: pure functions from query, key, value, mask and bias to output, and what they share."""
