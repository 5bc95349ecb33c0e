"""Every task on data that can be had anywhere, beside the obvious baseline.

    python benchmarks/tasks.py run --jobs 2                # all: some hours
    python benchmarks/tasks.py run --only semi anogan      # some tasks
    python benchmarks/tasks.py table                       # the figures so far, as Markdown

Each cell is one run of ``growgan grow --task`` by its small form, on one core, within a budget of
time (the score's own network is there before); the figures are those that the run itself prints: of
images that it never saw. "L1 alone" is the same run whose L1 term weighs so much that D has no say;
it pays for D all the same, so that without one it would see about twice as many images in its time.
Rows are kept as they come, and a row that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch
from rows import kept_rows, new_rows

from growgan.config import make_settings, merged
from growgan.data import load_images
from growgan.growth.budget import Budget
from growgan.growth.scoring import make_scorer
from growgan.tasks import named, prepare, train_task
from growgan.training.runtime import machine

RESULTS = Path(__file__).parent / "results" / "tasks.jsonl"
RUNS = Path("runs/tasks")
COLOURS, MASKS, GLYPHS, FASHION = "glyphs:rgb", "glyphs:mask", "glyphs", "fashion-mnist"
ALONE = {"regularisers": {"l1": {"weight": 1e4}}}
FEWER = {"score": {"samples": 1_000}}  # at 64 pixels scoring would take half of the time
PROJECTION = {"conditioning": "image-projection"}
CONTRARY = {"conditioning_options": {"contrary": 1.0}}

# Group: name, task, data (and truth), pixels, minutes, what differs from the task's own, seeds.
Cell = tuple[str, str, tuple[str, ...], int, float, dict[str, Any], int]
CELLS: dict[str, list[Cell]] = {
    "cyclegan": [
        (
            "serif and sans",
            "cyclegan:aligned",
            ("glyphs:style=serif", "glyphs:style=sans"),
            32,
            20,
            {},
            1,
        )
    ],
    "pix2pix": [
        (f"{kind}, {data[0]}{more}", task, data, 32, minutes, changes, 1)
        for kind, task, data, minutes in (
            ("colour", "pix2pix:colour", (COLOURS,), 2),
            ("edges", "pix2pix:edges", (FASHION,), 2),
            ("mask", "pix2pix", (MASKS, COLOURS), 6),
            ("segment", "pix2pix", (COLOURS, MASKS), 2),  # the truth is the renderer's own
        )
        for more, changes in (("", {}), (", a contrario", CONTRARY), (", L1 alone", ALONE))
    ],
    "srgan": [
        (
            f"{data}, {side // 4} to {side}{more}",
            "srgan:4",
            (data,),
            side,
            minutes,
            {**FEWER, **changes},
            1,
        )
        for data, side, minutes in ((FASHION, 32, 3), (GLYPHS, 64, 5))
        for more, changes in (("", {}), (", projection", PROJECTION), (", L1 alone", ALONE))
    ],
    "text2image": [
        ("two stages", "text2image", ("glyphs:captions",), 32, 12, {}, 1),
        ("direct", "text2image:direct", ("glyphs:captions",), 32, 12, {}, 1),
    ],
    "semi": [(f"{n} labels", f"semi:{n}", (FASHION,), 32, 4, {}, 5) for n in (100, 500, 1000)],
    "anogan": [(f"class {k}", f"anogan:{k}", (FASHION,), 32, 1, {}, 1) for k in range(10)],
    "next-frame": [
        (f"glyphs{more}", "next-frame:moving", (GLYPHS,), 32, 20, changes, 1)
        for more, changes in (("", {}), (", L1 alone", ALONE))
    ],
    "augment": [
        (f"{n} of each class", f"augment:{n}", (FASHION,), 32, 2, {}, 3) for n in (10, 100, 1000)
    ],
    "style": [
        (f"garments{more}", "style", (FASHION,), 32, 6, changes, 1)
        for more, changes in (("", {}), (", no mixing", {"stack": {"mixing": 0.0}}))
    ],
}
Key = tuple[str, str, int]  # group, name, seed


def finished() -> dict[Key, dict[str, Any]]:
    """Return the rows that are there."""
    return {(row["group"], row["name"], row["seed"]): row for row in kept_rows(RESULTS)}


def run(group: str, cell: Cell, seed: int) -> dict[str, Any]:
    """Train one task and return its figures."""
    name, task, sources, side, minutes, changes, _ = cell
    torch.set_num_threads(1)
    out = RUNS / f"{group}-{name}-{seed}".replace(" ", "-").replace(",", "")
    shutil.rmtree(out, ignore_errors=True)
    data = prepare(task, *(load_images(source, resolution=side) for source in sources))
    (found, _, kind), limit = named(task), Budget(seconds=60 * minutes)
    settings = make_settings(merged(found.beginning(kind), {"seed": seed, "threads": 1}), changes)
    taught = found.taught(found.split(data, kind)[0], kind, seed)
    make_scorer(taught, settings, limit, torch.device("cpu"))  # before the clock starts
    made = train_task(task, data, out=out, budget=limit, settings=settings)
    figures = json.loads((out / "gallery" / "task.json").read_text())
    row = {"group": group, "name": name, "seed": seed, "minutes": minutes, "figures": figures}
    return row | {"layers": len(made.best.network().spec.layers), "machine": machine()}


def table() -> str:
    """Return a table for each task: its figures, mean ± deviation where there are seeds."""
    lines = []
    for group, cells in CELLS.items():
        rows = {
            cell[0]: [r for (g, name, _), r in finished().items() if (g, name) == (group, cell[0])]
            for cell in cells
        }
        rows = {name: each for name, each in rows.items() if each}
        if not rows:
            continue
        keys = list(dict.fromkeys(k for each in rows.values() for r in each for k in r["figures"]))
        lines += [f"\n### {group}\n", "| | minutes | " + " | ".join(keys) + " |"]
        lines += ["|---|---|" + "---|" * len(keys)]
        for name, each in rows.items():
            cells_ = [_cell([r["figures"][k] for r in each if k in r["figures"]]) for k in keys]
            lines.append(f"| {name} | {each[0]['minutes']} | " + " | ".join(cells_) + " |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3g}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.2g}"


def main() -> None:
    """Read the command line, run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--only", nargs="*", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each")
    given = parser.parse_args()
    if given.command == "run":
        known = finished()
        wanted = [
            (group, cell, seed)
            for group in given.only
            for cell in CELLS[group]
            for seed in range(cell[-1])
            if (group, cell[0], seed) not in known
        ]
        for row in new_rows(run, wanted, given.jobs, RESULTS):
            print(row, flush=True)
    print(f"{machine()}\n{table()}")


if __name__ == "__main__":
    main()
