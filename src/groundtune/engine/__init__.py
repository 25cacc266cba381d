"""Training, and the evaluation that it shares with `groundtune evaluate`."""
