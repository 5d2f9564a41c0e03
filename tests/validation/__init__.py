"""Experiments that ask whether the metrics are useful; `python -m tests.validation` runs them."""
