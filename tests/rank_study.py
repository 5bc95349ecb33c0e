"""Twenty steps and two growths, alone or as one of several ranks; what comes out goes to a file.

torchrun --nproc-per-node 2 tests/rank_study.py OUT.npz SETTINGS.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist

from growgan.config import ActionSettings, make_settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.growth.actions import legal_growths
from growgan.growth.executor import Asked, Silent, Trainer
from growgan.growth.history import Space
from growgan.objectives import make_objective
from growgan.training.checkpoint import packed, unpacked
from growgan.training.gan import Gan
from growgan.training.ranks import Ranks, join, leave
from growgan.training.runtime import make_runtime
from growgan.training.stage import Slice, train

BATCH = 16
SLICES = ((7, 0.0), (7, 0.8), (6, 0.5))  # steps, and how long what grew fades in


def study(values: dict[str, Any]) -> dict[str, Any]:
    """Return what G draws, D's logits and the weights after 20 steps with two growths."""
    torch.set_num_threads(1)
    with doubled():
        return trained(values)


@contextmanager
def doubled() -> Iterator[None]:
    """Compute in float64: twenty steps of Adam make too much of float32's rounding."""
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def carried(gan: Gan, ranks: Ranks) -> Gan:
    """Return the pair as this rank gets it: all but the first read it from files."""
    return gan if ranks.first else unpacked(packed(gan))


def apart(gan: Gan, ranks: Ranks) -> float:
    """Return the largest difference between this rank's pair and the first rank's, by name."""
    pairs = gan.generator, gan.discriminator, gan.average
    own = {f"{i} {k}": v for i, pair in enumerate(pairs) for k, v in pair.state_dict().items()}
    own |= {f"memory {k}": v for k, v in gan.memory.items() if v.numel() == 1}
    first = ranks.tell(own)
    assert own.keys() == first.keys()
    return max(float((own[name] - first[name]).abs().max()) for name in own)


def farthest(gan: Gan, ranks: Ranks) -> float:
    """Return :func:`apart` of the rank that is farthest from the first."""
    own = torch.tensor([apart(gan, ranks)])
    if ranks.count > 1:
        dist.all_reduce(own, dist.ReduceOp.MAX)
    return float(own)


def trained(values: dict[str, Any]) -> dict[str, Any]:
    """Return what ``study`` does, in the precision of the moment."""
    settings = make_settings({"batch": BATCH, "precision": "float32", **values})
    runtime = replace(make_runtime("cpu", "float32"), ranks=join())
    space = Space(settings.preset, settings.stack, 1, (16, 16))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 1, 16, 16), dtype=np.uint8)
    batches = Batches(ImageSet("noise", pixels, None, (), "noise"), BATCH, 0)
    gan = Gan.create(*space.stacks(space.levels - 1), settings.optimiser, seed=0)
    terms: dict[str, float] = {}
    for number, (steps, fade) in enumerate(SLICES):
        if number:
            kinds = settings.stack.kind, settings.stack.of("discriminator").kind
            known = legal_growths(
                gan.generator.spec, gan.discriminator.spec, ActionSettings(), (16, 16), kinds
            )
            wanted = 2 if number == 1 else 1
            growth = next(
                g
                for g in known
                if g.generator and g.discriminator and g.fades() and g.factors == (wanted, wanted)
            )
            gan = gan.branch(growth.generator, growth.discriminator, seed=number)
        gan = carried(gan, runtime.ranks)
        piece = Slice(images=steps * BATCH, fade=fade)
        train(
            gan,
            batches,
            make_objective(settings),
            settings,
            runtime,
            piece,
            report=lambda progress: terms.update(progress.terms),
        )
    drawn = Trainer(batches, runtime, None, Silent()).draw(gan, Asked(11, 11, None, 4))
    z = torch.randn(8, gan.generator.spec.latent, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gan.generator.eval()
        gan.discriminator.eval()
        images = gan.generator(z)
        found = {"drawn": drawn, "images": images, "logits": gan.discriminator(images)}
        for name in ("generator", "average"):
            parameters = getattr(gan, name).parameters()
            found[name] = torch.cat([p.flatten() for p in parameters])
        found["average's images"] = gan.average(z)
    memory = [m.flatten().float() for _, m in sorted(gan.memory.items()) if m.numel() == 1]
    found["memory"] = torch.cat([*memory, torch.zeros(1)])
    found["apart"] = torch.tensor(farthest(gan, runtime.ranks))
    return {name: value.numpy() for name, value in found.items()}


if __name__ == "__main__":
    found = study(json.loads(Path(sys.argv[2]).read_text()))
    first = join().first
    leave()
    if first:
        # Threads of gloo that outlive the group abort the process at random as it ends.
        tasks = Path("/proc/self/task")
        names = [(each / "comm").read_text() for each in tasks.glob("*")]
        np.savez(sys.argv[1], left=sum("gloo" in name for name in names), **found)
