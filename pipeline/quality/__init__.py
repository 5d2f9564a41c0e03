"""Metrics by name, from accumulators that merge in any order."""
