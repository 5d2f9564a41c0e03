"""From a filter to a version that shares all its data."""
