"""The first child of a run: opens the device and writes the environment block."""

from __future__ import annotations

import json
import sys

from fastdw.benchmark.gpu.device import describe, open_device
from fastdw.benchmark.gpu.settings import Settings


def main(settings_json: str) -> None:
    settings = Settings.from_json(settings_json)
    told = describe(open_device(settings.device))
    settings.path(".json").write_text(json.dumps(told, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
