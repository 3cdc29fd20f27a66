"""What a section has in its hands: the device, the sizes, the records, and parts that may fail."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastdw.backends import BackendRefused
from fastdw.benchmark.gpu import progress
from fastdw.benchmark.gpu.device import Device
from fastdw.benchmark.gpu.records import Records, first_line
from fastdw.benchmark.gpu.settings import Settings, Sizes

T = TypeVar("T")
Failed = Callable[[str, str], object]  # takes a status and a reason


class DeviceLost(BaseException):
    """The device answers no more in this process; a fresh one goes on. No `except Exception`."""


@dataclass(frozen=True)
class Item:
    """One thing of a section that is done in one go.

    Attributes:
        key: tells it from the others of the section, also in the process after a crash.
        work: does it and records it.
        limit_s: how long it may take between two signs of life.
    """

    key: str
    work: Callable[[], None]
    limit_s: float = 60.0


class Bench:
    """The child's side of a section.

    Attributes:
        settings, sizes: what is asked for.
        device: what is measured.
        environment: the environment block of the run.
    """

    def __init__(
        self,
        settings: Settings,
        sizes: Sizes,
        device: Device,
        environment: dict[str, Any],
        deadline: float,
        events: Path,
    ) -> None:
        self.settings, self.sizes, self.device = settings, sizes, device
        self.environment = environment
        self._records = Records(Path(settings.folder), environment, settings.run)
        self._deadline, self._events = deadline, events
        self._progress = progress.read(events)
        self._item: str | None = None

    def record(self, table: str, **row: Any) -> None:
        """Append a row to gpu_<table>.csv, at once."""
        self._records.add(table, **row)

    def say(self, text: str) -> None:
        """A line of the log."""
        print(text, flush=True)

    def seconds_left(self) -> float:
        return self._deadline - time.time()

    def is_finished(self, item: Item) -> bool:
        return item.key in self._progress.finished

    def begin(self, item: Item) -> None:
        self._item = item.key
        progress.tell(self._events, "begin", item=item.key, limit_s=item.limit_s)

    def end(self) -> None:
        progress.tell(self._events, "end")

    def attempt(self, part: str, work: Callable[[], T], failed: Failed) -> T | None:
        """Do a part of the item, the device's share included; None if it fails.

        Args:
            part: a contender, by the name that it has in the other items too.
            work: what may fail, or take the process with it.
            failed: told ("failed" or "skipped", why), in time to be recorded.

        Raises:
            DeviceLost: the part left the device unusable.
        """
        assert self._item is not None
        if (self._item, part) in self._progress.crashed:
            reason, recorded = self._progress.crashed[self._item, part]
            if not recorded:
                failed("failed", reason)
            return None
        if self._progress.is_given_up(part):
            failed("skipped", f"given up: it took {progress.MOST_CRASHES} processes with it")
            return None
        progress.tell(self._events, "part", part=part)
        try:
            result = work()
            self.device.synchronize()
            return result
        except BackendRefused as refusal:
            failed("skipped", first_line(refusal))
            return None
        except Exception as error:  # whatever a kernel, a compiler or a peer raises
            reason = first_line(error)
            self.say(f"{self._item}: {part}: {traceback.format_exc()}")
        failed("failed", reason)
        if self.device.is_lost():
            progress.tell(self._events, "lost", reason=reason)
            raise DeviceLost(reason)
        return None
