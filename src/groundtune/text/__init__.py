"""Strings and tokens: class names, prompts, token inputs and which classes stand in a prompt."""
