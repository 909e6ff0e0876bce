"""The held-out loss: fixed clips, fixed noise, fixed timestep quantiles, so that two figures differ by weights only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from reelwright.bundle import DenoisingLoss
from reelwright.data.dataset import CachedDataset
from reelwright.data.replacement import readable
from reelwright.metrics.statistics import mean_interval, possible_range
from reelwright.randomness import keyed_normal
from reelwright.types import Batch, UserError


@torch.no_grad()
def fixed_losses(module: DenoisingLoss, batch: Batch, times: Tensor, device: torch.device) -> Tensor:
    """Loss of each sample at each of `times`: `b times`. Noise is keyed by the sample's index and the time's number.

    The posterior's mean is used, not a draw of it.
    """
    shape = tuple(batch.latents.mean.shape[1:])
    latents, text = batch.latents.mean.to(device), batch.text.to(device)
    columns = []
    for number, t in enumerate(times.tolist()):
        noise = torch.stack([keyed_normal(shape, "held-out", index, number) for index in batch.indices])
        t_batch = torch.full((len(batch),), t, dtype=torch.float32, device=device)
        columns.append(module(latents, noise.to(device), t_batch, text).float().cpu())
    return torch.stack(columns, dim=1)


def held_out_loss(
    module: DenoisingLoss, dataset: CachedDataset, device: torch.device, num_clips: int, num_times: int, batch_size: int
) -> dict[str, Any]:
    """Mean loss at quantiles (k + 1/2) / num_times of the training times, with a 95 % interval over clips.

    `heldout_split` names the clips it was measured on: 'train' where nothing is held out, so that nobody takes the
    figure for generalisation. Call it with the averaged weights and the training precision in place.
    """
    quantiles = (torch.arange(num_times, dtype=torch.float64) + 0.5) / num_times
    times = module.objective.sample_time(quantiles)
    module.eval()
    by_clip: dict[str, list[Tensor]] = {}
    unreadable = 0
    for chunk in _chunks(dataset, num_clips, batch_size):
        items = readable(dataset, chunk, seed=0)
        unreadable += len(chunk) - len(items)
        if not items:
            continue
        rows = fixed_losses(module, dataset.load(items, seed=0), times, device)  # b times
        for (index, _), row in zip(items, rows, strict=True):
            by_clip.setdefault(dataset.samples[index].clip, []).append(row)
    if not by_clip:
        raise UserError(f"{dataset.cache.root}: no held-out clip can be read; run `reelwright prepare` again")
    # windows of one clip are no independent measurements: they count as one
    losses = torch.stack([torch.stack(rows).mean(dim=0) for rows in by_clip.values()])  # clips times
    means = losses.mean(dim=1).tolist()
    low, high = mean_interval(means, bounds=possible_range("held-out loss"))
    return {
        "heldout_loss": sum(means) / len(means),
        "heldout_low": low,
        "heldout_high": high,
        "heldout_clips": len(losses),
        **({"heldout_unreadable": unreadable} if unreadable else {}),
        "heldout_split": next(iter(dataset.samples.values())).split,
        "heldout_times": [round(t, 6) for t in times.tolist()],
        "heldout_by_time": losses.mean(dim=0).tolist(),
    }


def _chunks(dataset: CachedDataset, num_clips: int, batch_size: int) -> Iterator[list[tuple[int, int]]]:
    """`num_clips` samples spread evenly over the split, as lists of (index, epoch 0), each of one bucket."""
    every = sorted(dataset.samples)
    count = min(num_clips, len(every))
    chosen = {every[number * len(every) // count] for number in range(count)}
    for indices in dataset.buckets().values():
        taken = [index for index in indices if index in chosen]
        for start in range(0, len(taken), batch_size):
            yield [(index, 0) for index in taken[start : start + batch_size]]
