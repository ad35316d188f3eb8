"""Speculation: who guesses tokens, where guesses go, and what they are worth."""
