"""Offline and online learners: one file per algorithm, and what trains and evaluates them."""
