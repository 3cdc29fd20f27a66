"""The standing benchmark of whole networks; appends to bench/results/<device>/models.csv.

The steps of each network go to layers.csv beside it. Further arguments go to `fastdw bench`, for
example --rounds 5 or --provider fastdw.
"""

import subprocess
import sys
from pathlib import Path

NETWORKS = (
    # MODEL, resolution, batches
    ("torchvision:mobilenet_v2", 224, (1, 8, 32)),
    ("fastdw:mobilenet_v1", 224, (1, 8, 32)),
    ("timm:mobilenetv2_035", 96, (1,)),
    ("torchvision:mobilenet_v3_large", 224, (1,)),
    ("torchvision:efficientnet_b0", 224, (1,)),
)


def main() -> int:
    results = Path(__file__).resolve().parent / "results"
    worst = 0
    for model, resolution, batches in NETWORKS:
        command = [sys.executable, "-m", "fastdw.cli", "bench", model, "--results", str(results)]
        command += ["--resolution", str(resolution), "--layers"]
        command += [word for batch in batches for word in ("--batch", str(batch))]
        worst = max(worst, subprocess.run([*command, *sys.argv[1:]]).returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
