"""The way of the data: steps, store, quality, curation, stream, and the jobs that wire them."""
