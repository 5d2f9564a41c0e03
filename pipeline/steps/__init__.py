"""What happens to one episode on its way in: validation and naming, as pure functions."""
