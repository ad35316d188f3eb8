"""Writes the random-weight model of a shape into what one peer reads, inside that peer's environment."""
