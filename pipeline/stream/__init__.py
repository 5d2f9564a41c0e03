"""Minibatches whose rows are a pure function of versions, selection, sampler, seed and step."""
