"""What a section has done so far, as a file of events: how a fresh process goes on after a crash.

The child tells what it begins and ends; the parent adds that a child died. An item is what is done
in one go; a part is a contender in it. A part that was running when a process died is left out when
its item is begun again; a part that did so twice is left out of the whole section.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_CRASHES = 2


@dataclass
class Progress:
    """The state of a section, read back from its events.

    Attributes:
        finished: items that are not begun again.
        crashed: (item, part) -> why, and whether the child could still record it itself.
        crashes: how often each part took its process with it.
    """

    finished: set[str] = field(default_factory=set)
    crashed: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)
    crashes: Counter[str] = field(default_factory=Counter)
    item: str | None = None
    part: str | None = None
    limit_s: float = 0.0
    blamed: str = ""  # where the last process ended
    events: int = 0

    def is_given_up(self, part: str) -> bool:
        return self.crashes[part] >= MOST_CRASHES

    def take(self, event: dict[str, Any]) -> None:
        self.events += 1
        kind = event["event"]
        if kind == "begin":
            self.item, self.part, self.limit_s = event["item"], None, event["limit_s"]
        elif kind == "part":
            self.part = event["part"]
        elif kind == "end":
            self._finish_item()
        elif kind in ("lost", "died") and self.item is not None:
            self._blame(event["reason"], recorded=kind == "lost")

    def _blame(self, reason: str, recorded: bool) -> None:
        assert self.item is not None
        self.blamed = self.item if self.part is None else f"{self.item}, {self.part}"
        if self.part is None:
            self._finish_item()
            return
        self.crashed[self.item, self.part] = (reason, recorded)
        self.crashes[self.part] += 1
        self.item = self.part = None

    def _finish_item(self) -> None:
        assert self.item is not None
        self.finished.add(self.item)
        self.item = self.part = None


class Follower:
    """Reads the events of a section as they come."""

    def __init__(self, path: Path) -> None:
        self.progress = Progress()
        self.path, self._offset = path, 0

    def update(self) -> Progress:
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]  # a line may be half written
            self._offset += len(whole)
            for line in whole.splitlines():
                self.progress.take(json.loads(line))
        return self.progress


def read(path: Path) -> Progress:
    return Follower(path).update()


def tell(path: Path, event: str, **details: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps({"event": event, **details}) + "\n")
