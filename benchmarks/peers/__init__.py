"""headrace against other engines: the same shape, one run, taken in turns.

`python -m benchmarks.peers.setup` makes a virtual environment per peer; `python -m benchmarks.peers` compares. What is
compared stands in `roster.py`. Only ratios within one run count: machines differ and are shared.
"""
