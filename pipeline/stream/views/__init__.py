"""Versions in other libraries' own types, one module per library, loaded when asked for."""
