"""Two models for one stream of tokens: who speaks next, and what the other one has not read yet."""
