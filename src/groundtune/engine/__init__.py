"""The loops: training, evaluation, and the inference that both share."""
