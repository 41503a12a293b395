"""How long the guest's writes stood still, seen from the host: gaps between acknowledgements in the serial log.

A guest can't see its own pause (its clock stops too), so this watches the file from outside.
"""

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

LINE = re.compile(rb"@a (\d+) \d+\n")


@dataclass
class Watch:
    """Between `start` and `stop` it looks at the log every millisecond (2 % of a core): `with Watch(log) as watch:`."""

    log: Path
    gaps: list[tuple[float, float, int]] = field(default_factory=list)  # (end, length, disk), monotonic seconds
    _thread: threading.Thread | None = None
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> "Watch":
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(5)

    def __enter__(self) -> "Watch":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def longest_ms(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest gap that touches the given span of time.monotonic(); 0 when nothing was seen."""
        touching = [length for end, length, _ in self.gaps if end >= since and end - length <= until]
        return max(touching, default=0.0) * 1000

    def typical_ms(self) -> float:
        """The median gap."""
        lengths = sorted(length for _, length, _ in self.gaps)
        return lengths[len(lengths) // 2] * 1000 if lengths else 0.0

    def _watch(self) -> None:
        last: dict[int, float] = {}
        with self.log.open("rb") as lines:
            lines.seek(0, 2)
            rest = b""
            while not self._over.is_set():
                rest = self._note(rest + lines.read(), last)
                time.sleep(0.001)

    def _note(self, text: bytes, last: dict[int, float]) -> bytes:
        """Book every whole line in the text; returns what is left of a line that has not ended yet."""
        now = time.monotonic()
        whole, _, rest = text.rpartition(b"\n")
        for disk in {int(number) for number in LINE.findall(whole + b"\n")}:
            if disk in last:
                self.gaps.append((now, now - last[disk], disk))
            last[disk] = now
        return rest
