"""Pictures of what was measured: plot.py [FOLDER]... (bench/results/<device>, all if none).

Writes beside the CSV files: a bar chart of the providers for each case of models*.csv, and a
roofline and a bar chart of the steps for each case of layers*.csv; the newest measurement of each.
"""

import re
import sys
from pathlib import Path

from fastdw.benchmark.layers import read_layers
from fastdw.benchmark.plots import layer_bars, provider_bars, roofline_of
from fastdw.benchmark.providers import PROVIDERS
from fastdw.benchmark.report import newest_rows, read_csv

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    folders = [Path(name) for name in sys.argv[1:]] or sorted(
        path for path in RESULTS.iterdir() if path.is_dir()
    )
    labels = {name: provider.label for name, provider in PROVIDERS.items()}
    for folder in folders:
        rows = newest_rows(read_csv(sorted(folder.glob("models*.csv"))))
        for (_, *case), providers in rows.items():
            found = [providers[name] for name in PROVIDERS if name in providers]
            save(folder, "providers", case, provider_bars(found, labels))
        for path in sorted(folder.glob("layers*.csv")):
            for case, layers in read_layers(path).items():
                words = [case.model, case.resolution, case.threads, case.batch]
                peak = layers[0].peak_gflops
                save(folder, "roofline", words, roofline_of(layers, peak, ()))
                save(folder, "steps", words, layer_bars(layers))
    return 0


def save(folder, kind, case, figure):
    """Write KIND-MODEL-RESOLUTION-tTHREADS-bBATCH.svg."""
    model, resolution, threads, batch = map(str, case)
    name = re.sub(r"[^a-z0-9]+", "-", f"{kind} {model} {resolution} t{threads} b{batch}".lower())
    path = folder / f"{name}.svg"
    figure.savefig(path)
    print(f"wrote {path}")


if __name__ == "__main__":
    sys.exit(main())
