"""Weights: from the files of a model folder to tensors under our own names. Knows no layer and no family."""
