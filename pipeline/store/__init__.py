"""Versions nobody can lose: immutable files and one exclusive create per commit."""
