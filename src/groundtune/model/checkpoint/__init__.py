"""Weights of other projects: rename tables and what goes with them."""
