"""Check that a long search does not leak memory, by sampling its resident memory.

    python benchmarks/memory_leak.py --hours 2     # also writes benchmarks/results/memory_leak.json

After a warm-up of a fifth of the time, when every resolution has been reached, memory should no
longer grow. The slope of a fitted line is reported with its standard error.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from growgan.training.runtime import describe_machine

RESULTS = Path(__file__).parent / "results" / "memory_leak.json"
RUN_DIR = Path("runs/memory-leak")
WARM_UP_FRACTION = 0.2  # of the time
OVERRIDES = (  # the search tries growths until the end, whether or not they are accepted
    "growth.images_per_parameter=0.01",
    "growth.min_trial_images=1000",
    "growth.trial_budget_fraction=0.4",
    "growth.plateau_slope=100",
)


def resident_memory_mib(pid: int) -> float:
    """Return the anonymous resident memory of a process in MiB, without mapped files."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{pid}/status has no RssAnon")


def main() -> None:
    """Read the command line, run the search, and print and save the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=2, help="duration of the search")
    parser.add_argument("--data", default="fashion-mnist", help="training images")
    parser.add_argument(
        "--interval-seconds", type=float, default=5, help="seconds between two samples"
    )
    args = parser.parse_args()
    shutil.rmtree(RUN_DIR, ignore_errors=True)
    command = [sys.executable, "-m", "growgan", "grow", args.data, "--resolution", "32"]
    command += ["--budget", f"{args.hours * 3600:.0f}s", "--out", str(RUN_DIR)]
    for override in OVERRIDES:
        command += ["--set", override]
    samples = []
    start = time.monotonic()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            time.sleep(args.interval_seconds)
            if process.poll() is None:
                samples.append((time.monotonic() - start, resident_memory_mib(process.pid)))
    seconds, mib = np.array(samples).T
    is_warm = seconds > WARM_UP_FRACTION * seconds[-1]
    (slope, _), covariance = np.polyfit(seconds[is_warm] / 3600, mib[is_warm], 1, cov=True)
    measurements = {
        "machine": describe_machine(),
        "hours": seconds[-1] / 3600,
        "exit_code": process.returncode,
        "mib_after_warm_up": float(mib[is_warm][0]),
        "mib_at_end": float(mib[-1]),
        "mib_peak": float(mib.max()),
        "mib_per_hour": float(slope),
        "mib_per_hour_stderr": float(covariance[0, 0] ** 0.5),
    }
    print("\n| measurement | value |\n|---|---|")
    for name, value in measurements.items():
        print(f"| {name} | {value if isinstance(value, str) else format(value, '.4g')} |")
    RESULTS.write_text(json.dumps({**measurements, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
