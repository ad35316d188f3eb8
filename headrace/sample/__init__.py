"""Logits to tokens. Slot: processors."""
