"""The server: an OpenAI-compatible HTTP API in one process, the engine in another.

    client --HTTP--> app -> service -> EngineClient ==socket==> worker -> Engine
                      |       `- text to tokens and back, limits, ledger
                      `- routes, authentication, errors

The API process never imports PyTorch; the engine process never sees a byte that a client sent, only token ids and
checked numbers. What crosses the socket is in messages.py.
"""
