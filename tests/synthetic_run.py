"""An invented run directory, as the search loop would have written it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growgan.report import save_image_grid

# id, parent, round, growth, resolution, G layers, D layers, score, seconds
PLAN: list[tuple[str, str | None, int, str, int, int, int, float | None, float]] = [
    ("0000", None, 0, "start", 4, 1, 1, 14.2, 6),
    ("0001", "0000", 1, "no growth", 4, 1, 1, 13.1, 8),
    ("0002", "0000", 1, "G + conv 3x3 128 x2 | D + conv 3x3 128 x2", 8, 2, 2, 9.6, 11),
    ("0003", "0000", 1, "G + conv 5x5 64", 4, 2, 1, 13.4, 10),
    ("0004", "0000", 1, "D + conv 3x3 64", 4, 1, 2, 13.9, 9),
    ("0005", "0002", 2, "no growth", 8, 2, 2, 8.7, 12),
    ("0006", "0002", 2, "G + conv 3x3 128", 8, 3, 2, 8.1, 14),
    ("0007", "0002", 2, "G + conv 3x3 64 x2 | D + conv 3x3 64 x2", 16, 3, 3, 6.6, 17),
    ("0008", "0002", 2, "G + conv 7x7 32", 8, 3, 2, None, 4),
    ("0009", "0007", 3, "no growth", 16, 3, 3, 5.4, 19),
    ("0010", "0007", 3, "G + conv 3x3 64", 16, 4, 3, 4.9, 21),
    ("0011", "0007", 3, "D + conv 3x3 64", 16, 3, 4, 6.0, 22),
    ("0012", "0010", 4, "no growth", 16, 4, 3, 4.3, 22),
    ("0013", "0010", 4, "G + conv 3x3 48 x2 | D + conv 3x3 48 x2", 32, 5, 4, 3.6, 30),
    ("0014", "0010", 4, "G + conv 3x3 64", 16, 5, 3, 4.6, 24),
    ("0015", "0009", 4, "G + conv 3x3 48 x2 | D + conv 3x3 48 x2", 32, 4, 4, 4.4, 28),
    ("0016", "0013", 5, "no growth", 32, 5, 4, 2.9, 34),
    ("0017", "0013", 5, "G + conv 3x3 24", 32, 6, 4, 3.1, 37),
    ("0018", "0013", 5, "D + conv 3x3 32", 32, 5, 5, 3.3, 36),
    ("0019", "0016", 6, "no growth", 32, 5, 4, 2.41, 34),
    ("0020", "0016", 6, "D + residual 3x3 48", 32, 5, 5, 2.22, 41),
    ("0021", "0016", 6, "G + conv 1x1 24", 32, 6, 4, 2.5, 36),
    ("0022", "0020", 7, "no growth", 32, 5, 5, 1.84, 41),
    ("0023", "0022", 8, "no growth", 32, 5, 5, 1.52, 41),
    ("0024", "0023", 9, "no growth", 32, 5, 5, 1.31, 41),
]
SELECTS = [
    (1, ["0002"], "0002", "0002 improves 3.1 % a second"),
    (2, ["0007"], "0007", "0007 improves 2.2 % a second; 0006 is no better"),
    (3, ["0009", "0010"], "0010", "both clear the noise"),
    (4, ["0013"], "0013", "0013 reaches 32x32"),
    (5, ["0016"], "0016", "the growth gained less than the noise"),
    (6, ["0020"], "0020", "0020 improves 1.1 % a second"),
    (7, ["0022"], "0022", "one candidate"),
    (8, ["0023"], "0023", "one candidate"),
    (9, ["0024"], "0024", "one candidate"),
]
START: dict[str, Any] = {
    "event": "start", "format": 1, "timestamp": 1.75e9, "version": "0.1.0",
    "policy": "dynamic", "preset": "pggan",
    "budget": {"seconds": 700.0}, "seed": 0, "resolution": [32, 32],
    "data": {"name": "fashion-mnist", "fingerprint": "5f0c12ab", "count": 60000, "channels": 1},
    "machine": "AMD EPYC, 2 cores, torch 2.13.0",
}  # fmt: skip


def blobs(n: int, side: int, noise: float, channels: int = 1) -> NDArray[np.uint8]:
    """Return discs of random size and brightness at ``side`` pixels, uint8 [n, C, side, side]."""
    rng = np.random.default_rng(0)
    y, x = (np.mgrid[:side, :side] + 0.5) / side
    where, radius, shade = rng.uniform(0.3, 0.7, (n, 2)), rng.uniform(0.1, 0.35, n), rng.random(n)
    rows, columns = y - where[:, 0, None, None], x - where[:, 1, None, None]
    far = np.hypot(rows, columns) - radius[:, None, None]
    image = (0.3 + 0.7 * shade[:, None, None]) / (1 + np.exp(far * 40))
    image = image[:, None] + noise * rng.standard_normal((n, channels, side, side))
    return (255 * image.clip(0, 1)).astype(np.uint8)


def candidate_event(plan: tuple[Any, ...], elapsed: float, images: int) -> dict[str, Any]:
    """Return the ledger event of one line of the plan."""
    id, parent, round, growth, side, g, d, score, seconds = plan
    return {
        "event": "candidate", "id": id, "parent": parent, "round": round, "growth": growth,
        "resolution": [side, side], "images": images, "seconds": seconds, "score": score,
        "score_stderr": None if score is None else 0.03 * score, "generator_layers": g,
        "discriminator_layers": d, "generator_parameters": 50_000 + 62_000 * g,
        "discriminator_parameters": 60_000 + 71_000 * d, "elapsed": elapsed,
        "spent_fraction": elapsed / 700, "status": "scored" if score else "failed",
        **({} if score else {"error": "loss_generator is not finite"}),
    }  # fmt: skip


def stat_events(id: str, side: int, begin: float, end: float, images: int) -> list[dict[str, Any]]:
    """Return forty points of the curves of a candidate."""
    rng = np.random.default_rng(int(id))
    speed = 9600 / side
    points = []
    for k in range(40):
        elapsed = begin + (end - begin) * (k + 1) / 40
        noise = rng.standard_normal(3)
        points.append(
            {
                "candidate": id, "elapsed": elapsed, "images": images + 80 * k,
                "resolution": [side, side], "alpha": min(1.0, k / 20),
                "images_per_second": speed * (1 + 0.05 * noise[0]),
                "loss_discriminator": 0.9 + 0.3 * math.exp(-elapsed / 99) + 0.07 * noise[1],
                "loss_generator": 1.4 - 0.4 * math.exp(-elapsed / 99) + 0.11 * noise[2],
                "r1": 0.02 + 0.01 * noise[0] ** 2,
            }
        )  # fmt: skip
    return points


def write_run(
    path: Path, *, channels: int = 1, upto: int = len(PLAN), end: bool = True, name: str = "shirts"
) -> Path:
    """Write a run directory with the first ``upto`` candidates, as the search loop does."""
    events, stats = [{**START, "data": {**START["data"], "name": name, "channels": channels}}], []
    elapsed, images = 4.0, {"": 0}
    for index, plan in enumerate(PLAN[:upto]):
        id, parent, round, _, side, *_, score, seconds = plan
        images[id] = images[parent or ""] + int(seconds * 9600 / side)
        stats += stat_events(id, side, elapsed, elapsed + 0.9 * seconds, images[parent or ""])
        elapsed += seconds
        events.append(candidate_event(plan, elapsed, images[id]))
        folder = path / "candidates" / id
        folder.mkdir(parents=True)
        save_image_grid(blobs(64, side, 0.05 * (score or 20), channels), folder / "samples.png", 8)
        if (index + 1 == upto or PLAN[index + 1][2] != round) and round:
            number, survivors, best, reason = SELECTS[round - 1]
            select = {"round": number, "survivors": survivors, "best": best, "reason": reason}
            events.append({"event": "select", **select})
    if end:
        cost = {"train": elapsed - 60, "score": 33.0, "data": 4.0, "other": 25.0}
        last = SELECTS[-1][2]
        events.append({"event": "end", "best": last, "elapsed": elapsed + 2, "cost": cost})
    (path / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    (path / "stats.jsonl").write_text("".join(json.dumps(e) + "\n" for e in stats))
    settings = "preset: pggan\npolicy: dynamic\ngrowth:\n  top_k: 3\n  sample_prob: 0.25\n"
    (path / "config.yaml").write_text(settings + "loss: non-saturating\n")
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
