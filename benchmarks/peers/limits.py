"""What this machine can do at most, measured as a turn of the run: how fast two kinds of pages are read.

    python -m benchmarks.peers.limits --threads 2

PyTorch asks for huge pages when THP_MEM_ALLOC_ENABLE is set before it first allocates: so each kind needs a process.
"""

from __future__ import annotations

import argparse
import json

SIZE = 1 << 30  # larger than any cache: some virtual machines see the 260 MB of a whole socket
PAGES = {"4 KiB pages": {}, "2 MiB pages": {"THP_MEM_ALLOC_ENABLE": "1"}}
"""Kind -> environment that asks for it."""


def main() -> None:
    import torch

    from headrace.meter import read_bandwidth

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, required=True)
    torch.set_num_threads(parser.parse_args().threads)
    print(json.dumps({"read_bytes_s": read_bandwidth(size=SIZE, seconds=2)}))


if __name__ == "__main__":
    main()
