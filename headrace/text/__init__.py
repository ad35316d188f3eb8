"""Text: tokens to characters and back, chat messages to prompts, replies. Knows nothing of models."""
