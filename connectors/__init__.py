"""One file per format: how its data become episodes, and episodes its data."""
