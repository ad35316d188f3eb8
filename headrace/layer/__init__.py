"""Layers: what a decoder block is made of. Plain objects that hold tensors and are called; slot: positions."""
