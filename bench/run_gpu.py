"""Everything to be known about fastdw on a GPU, in one command of nine minutes, without network.

Checks every op and whole networks, times them against torch, cuDNN and torch.compile, runs
compute-sanitizer and a training step; appends to bench/results/<device>/gpu_*.csv as it goes.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastdw.benchmark.gpu.session import main  # noqa: E402  this checkout, installed or not

if __name__ == "__main__":
    sys.exit(main())
