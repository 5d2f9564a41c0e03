"""Pages of the control port for people with a browser."""
