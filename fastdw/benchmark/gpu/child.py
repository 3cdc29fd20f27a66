"""A child process: the items of one section, until they are done or the time is up."""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from pathlib import Path

import torch

from fastdw.benchmark import environment
from fastdw.benchmark.gpu.bench import Bench, DeviceLost, Item
from fastdw.benchmark.gpu.device import Device, open_device
from fastdw.benchmark.gpu.records import first_line, read_environment
from fastdw.benchmark.gpu.settings import Settings, sizes

RESTART = 75  # exit code: the device is lost in this process, the section is not done


def main(module: str, settings_json: str, deadline: str, events: str) -> int:
    """Run the section whose items `module.items` gives.

    Returns:
        0 when every item was begun or the time is up, else `RESTART`.
    """
    settings = Settings.from_json(settings_json)
    device = open_device(settings.device)
    if settings.quick:
        torch.set_num_threads(1)  # tiny shapes: more threads only wait for each other
    about = settings.path(".json")
    if about.exists():
        told = read_environment(about)
    else:
        told = {**environment.describe(), "device": device.name(), "isa": device.isa()}
    bench = Bench(settings, sizes(settings), device, told, float(deadline), Path(events))
    try:
        with torch.no_grad():
            for item in importlib.import_module(module).items(bench):
                if bench.seconds_left() <= 0:
                    _record(bench, item, "skipped", "out of time, with all that follows it")
                    break
                if not bench.is_finished(item):
                    run(bench, item)
                    device.release_memory()
    except DeviceLost:
        return RESTART
    return 0


def run(bench: Bench, item: Item) -> None:
    """Do one item; what it raises is recorded and goes no further."""
    bench.begin(item)
    begin = time.perf_counter()
    try:
        item.work()
    except Exception as error:
        bench.say(f"{item.key}: {traceback.format_exc()}")
        _record(bench, item, "failed", first_line(error))
        _give_up_if_lost(bench.device, error)
    bench.end()
    bench.say(f"{item.key}: {time.perf_counter() - begin:.1f} s")


def _give_up_if_lost(device: Device, error: Exception) -> None:
    if device.is_lost():
        raise DeviceLost(first_line(error))


def _record(bench: Bench, item: Item, status: str, reason: str) -> None:
    bench.record("sections", item=item.key, status=status, reason=reason)


if __name__ == "__main__":
    sys.exit(main(*json.loads(sys.argv[1])))
