"""The learners' benchmark suite: data by published procedures, runs, results beside published ones.

`python -m benchmarks --help` says how to run it; docs/benchmarks.md holds results.
"""
