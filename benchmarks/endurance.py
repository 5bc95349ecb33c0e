"""Does a long run keep its memory? A search under a sampler of its resident memory.

    python benchmarks/endurance.py --hours 2     # a table, and benchmarks/results/endurance.json

After the first fifth (warm-up: every resolution has been reached) memory should no longer grow: the
slope of a line through the samples is given with its error, and in all over the rest of the run.
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

from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "endurance.json"
OUT = Path("runs/endurance")
WARM_UP = 0.2


def resident(pid: int) -> float:
    """Return a process's own memory in MiB, mapped files left out."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this kernel does not tell RssAnon")


def main() -> None:
    """Read the command line, run, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=2)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    given = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    command = [sys.executable, "-m", "growgan", "grow", given.data, "--resolution", "32"]
    command += ["--budget", f"{given.hours * 3600:.0f}s", "--out", str(OUT)]
    # Growths are tried all the way, whether or not they pay.
    command += ["--set", "growth.shown=0.01", "--set", "growth.images=1000"]
    command += ["--set", "growth.search=0.4", "--set", "growth.threshold=100"]
    samples = []
    begun = time.monotonic()
    with subprocess.Popen(command) as run:
        while run.poll() is None:
            time.sleep(given.every)
            if run.poll() is None:
                samples.append((time.monotonic() - begun, resident(run.pid)))
    seconds, mib = np.array(samples).T
    late = seconds > WARM_UP * seconds[-1]
    (slope, _), covariance = np.polyfit(seconds[late] / 3600, mib[late], 1, cov=True)
    figures = {
        "machine": machine(),
        "hours": seconds[-1] / 3600,
        "exit code": run.returncode,
        "MiB after warm-up": float(mib[late][0]),
        "MiB at the end": float(mib[-1]),
        "largest MiB": float(mib.max()),
        "MiB an hour": float(slope),
        "error of that": float(covariance[0, 0] ** 0.5),
    }
    print("\n| figure | value |\n|---|---|")
    for key, value in figures.items():
        print(f"| {key} | {value if isinstance(value, str) else format(value, '.4g')} |")
    RESULTS.write_text(json.dumps({**figures, "samples": samples}, indent=1) + "\n")


if __name__ == "__main__":
    main()
