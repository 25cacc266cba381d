"""Exported models: writing graphs and running them."""
