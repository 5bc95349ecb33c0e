"""Train 20 steps with two growths in one or several processes and save the results to a file.

torchrun --nproc-per-node 2 tests/distributed_study.py OUT.npz SETTINGS.json
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

from growgan.config import EditSettings, Settings, make_settings
from growgan.data import ImageSet
from growgan.data.batches import Batches
from growgan.execution.candidate_scorer import CandidateScorer
from growgan.execution.trial import SampleRequest
from growgan.objectives import make_objective
from growgan.search.growth import legal_growths
from growgan.search.history import SearchSpace
from growgan.training.checkpoint import gan_from_files, gan_to_files
from growgan.training.distributed import DistributedContext, init_distributed, shutdown_distributed
from growgan.training.gan import Gan
from growgan.training.loop import TrainingSegment, train
from growgan.training.runtime import make_runtime

BATCH_SIZE = 16
SEGMENTS = ((7, 0.0), (7, 0.8), (6, 0.5))  # number of steps, and length of the fade in segments


def run_study(values: dict[str, Any]) -> dict[str, Any]:
    """Return samples, logits and weights after 20 steps with two growths."""
    torch.set_num_threads(1)
    with float64():
        return _train(values)


@contextmanager
def float64() -> Iterator[None]:
    """Compute in float64, because twenty steps of Adam amplify the rounding of float32."""
    torch.set_default_dtype(torch.float64)
    try:
        with patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def _train(values: dict[str, Any]) -> dict[str, Any]:
    settings = make_settings({"batch_size": BATCH_SIZE, "precision": "float32", **values})
    runtime = replace(make_runtime("cpu", "float32"), distributed=init_distributed())
    space = SearchSpace(settings.preset, settings.network, 1, (16, 16))
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 1, 16, 16), dtype=np.uint8)
    batches = Batches(ImageSet("noise", pixels, None, (), "noise"), BATCH_SIZE, 0)
    gan = Gan.create(*space.specs_at(space.max_level - 1), settings.optimizer, seed=0)
    terms: dict[str, float] = {}
    for number, (num_steps, fade_segments) in enumerate(SEGMENTS):
        if number:
            gan = grow_both(gan, settings, resampling=2 if number == 1 else 1, seed=number)
        if not runtime.distributed.is_main_process:
            gan = gan_from_files(gan_to_files(gan))  # as in a search
        train(
            gan,
            batches,
            make_objective(settings),
            settings,
            runtime=runtime,
            segment=TrainingSegment(images=num_steps * BATCH_SIZE, fade_segments=fade_segments),
            on_progress=lambda progress: terms.update(progress.terms),
        )
    request = SampleRequest(num_samples=11, num_sources=11, labels=None, batch_size=4)
    samples = CandidateScorer(batches, runtime, None).sample_for_score(gan, request)
    z = torch.randn(8, gan.generator.spec.latent_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        gan.generator.eval()
        gan.discriminator.eval()
        images = gan.generator(z)
        results = {
            "samples": samples,
            "images": images,
            "logits": gan.discriminator(images),
            "generator": torch.cat([p.flatten() for p in gan.generator.parameters()]),
            "ema": torch.cat([p.flatten() for p in gan.ema.parameters()]),
            "ema_images": gan.ema(z),
        }
    state = [v.flatten().float() for _, v in sorted(gan.objective_state.items()) if v.numel() == 1]
    results["objective_state"] = torch.cat([*state, torch.zeros(1)])
    results["max_difference"] = torch.tensor(max_difference(gan, runtime.distributed))
    return {name: value.numpy() for name, value in results.items()}


def grow_both(gan: Gan, settings: Settings, *, resampling: int, seed: int) -> Gan:
    """Return a child in which a new layer of both networks fades in."""
    blocks = settings.network.block, settings.network.for_role("discriminator").block
    growths = legal_growths(
        gan.generator.spec, gan.discriminator.spec, EditSettings(), (16, 16), blocks
    )
    growth = next(
        growth
        for growth in growths
        if growth.generator_edits
        and growth.discriminator_edits
        and growth.has_fade_in()
        and growth.resampling_factors == (resampling, resampling)
    )
    return gan.grown_copy(growth.generator_edits, growth.discriminator_edits, seed=seed)


def max_difference(gan: Gan, distributed: DistributedContext) -> float:
    """Return the largest difference of any weight or state between rank 0 and another rank."""
    networks = {"generator": gan.generator, "discriminator": gan.discriminator, "ema": gan.ema}
    local = {
        f"{network_name}.{name}": value
        for network_name, network in networks.items()
        for name, value in network.state_dict().items()
    }
    local |= {f"state.{k}": v for k, v in gan.objective_state.items() if v.numel() == 1}
    main = distributed.broadcast_object(local)
    assert local.keys() == main.keys()
    difference = torch.tensor([max(float((local[k] - main[k]).abs().max()) for k in local)])
    if distributed.world_size > 1:
        dist.all_reduce(difference, dist.ReduceOp.MAX)
    return float(difference)


if __name__ == "__main__":
    study_results = run_study(json.loads(Path(sys.argv[2]).read_text()))
    is_main_process = init_distributed().is_main_process
    shutdown_distributed()
    if is_main_process:
        # Threads of gloo that outlive the process group abort the process at random at exit.
        thread_names = [(task / "comm").read_text() for task in Path("/proc/self/task").glob("*")]
        num_gloo_threads = sum("gloo" in name for name in thread_names)
        np.savez(sys.argv[1], num_gloo_threads=num_gloo_threads, **study_results)
