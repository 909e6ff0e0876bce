"""The noise schedule, the training objective and the samplers: knows no network."""
