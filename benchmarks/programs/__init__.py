"""Longer runs that a person starts by hand; each says by its exit status whether it held."""
