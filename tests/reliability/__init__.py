"""The fault programme: what is left of a store after crashes, kills, errors and mutations."""
