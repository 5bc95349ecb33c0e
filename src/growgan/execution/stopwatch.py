"""A stopwatch."""

from __future__ import annotations

import time


class Stopwatch:
    """Measures the seconds between laps. The first lap starts when it is created."""

    def __init__(self) -> None:
        self._last_lap_time = time.perf_counter()

    def lap(self) -> float:
        """Return the seconds since the last lap, and start a new one."""
        previous, self._last_lap_time = self._last_lap_time, time.perf_counter()
        return self._last_lap_time - previous
