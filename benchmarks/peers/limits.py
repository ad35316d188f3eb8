"""What this machine can do at most, measured natively as a turn of the run.

python -m benchmarks.peers.limits --threads 2
"""

from __future__ import annotations

import argparse
import json

SIZE = 1 << 30  # larger than any cache: some virtual machines see the 260 MB of a whole socket


def main() -> None:
    from headrace import kernels, limits

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, required=True)
    kernels.set_threads(parser.parse_args().threads)
    print(json.dumps(limits.measure(size=SIZE, seconds=2).row()))


if __name__ == "__main__":
    main()
