"""A plan to a batch, a batch to logits, a folder to a decoder."""
