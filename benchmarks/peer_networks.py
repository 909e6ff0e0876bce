"""Another project's network trained for some minutes in a plain loop, and what it makes of prompts.

Started by peers.py, in an environment that has the peer; needs nothing of ours but the tensors given to it.

    python benchmarks/peer_networks.py latte|lucidrains IN.pt OUT.pt --minutes 15 --threads 2

float32, AdamW, warm-up and a cosine by the clock, an average of the weights, 10 % of the captions dropped, noise
prediction over a cosine schedule of 1,000 steps: what both publish, with learning rate, width and depth as ours.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Cond = dict[str, Tensor]  # "tokens" `b l d`, "mask" `b l`
BATCH, RATE, WARMUP, DROPPED, DECAY = 64, 2e-3, 100, 0.1, 0.998
TIMES = 1000
SAMPLED = 50  # DDIM steps
WIDTH, DEPTH, HEADS = 256, 4, 4


class Peer:
    """A network and how it is asked for the noise in x `b c f h w` at times `b`."""

    def __init__(self, network: nn.Module, predict: Callable[[nn.Module, Tensor, Tensor, Cond], Tensor]) -> None:
        self.network, self.predict = network, predict


def latte(shape: list[int], text_width: int) -> Peer:
    """diffusers' network of Ma et al. 2024 (arXiv 2401.03048) with the choices of its published model."""
    from diffusers import LatteTransformer3DModel

    channels, frames, height, _ = shape
    network: Any = LatteTransformer3DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, num_layers=DEPTH // 2, in_channels=channels,
        cross_attention_dim=WIDTH, caption_channels=text_width, attention_bias=True, sample_size=height, patch_size=1,
        video_length=frames, activation_fn="gelu-approximate", norm_type="ada_norm_single", num_embeds_ada_norm=TIMES,
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip

    def predict(module: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return module(x, t, cond["tokens"], cond["mask"], return_dict=False)[0]

    return Peer(network, predict)


def lucidrains(shape: list[int], text_width: int) -> Peer:
    """The U-Net of video-diffusion-pytorch (after Ho et al. 2022, arXiv 2204.03458), told the mean of the caption."""
    from video_diffusion_pytorch import Unet3D  # pyright: ignore[reportMissingImports]

    channels, _, height, _ = shape
    levels = min(3, int(math.log2(height)))  # its halvings must divide the picture
    network = Unet3D(dim=WIDTH // 2, cond_dim=text_width, channels=channels, dim_mults=(1, 2, 4, 8)[: levels + 1])

    def predict(module: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        weights = cond["mask"] / cond["mask"].sum(1, keepdim=True)
        return module(x, t, cond=(cond["tokens"] * weights[..., None]).sum(1))

    return Peer(network, predict)


def alphas_cumprod() -> Tensor:
    """Nichol & Dhariwal 2021 (arXiv 2102.09672), equation 17."""
    t = torch.linspace(0, 1, TIMES + 1, dtype=torch.float64)
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.cumprod((f[1:] / f[:-1]).clamp_min(1e-3), 0).float()


def train(peer: Peer, data: dict[str, Any], minutes: float) -> tuple[nn.Module, int]:
    """The averaged network and the number of steps that fitted into the minutes."""
    latents, first, cumulative = data["latents"], data["first_caption"], alphas_cumprod()
    optimizer = torch.optim.AdamW(peer.network.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01)
    average, step, started = copy.deepcopy(peer.network), 0, time.perf_counter()
    while (share := (time.perf_counter() - started) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * share))
        rows = torch.randint(len(latents), (BATCH,))
        counts = first[rows + 1] - first[rows]
        captions = first[rows] + (torch.rand(BATCH) * counts).long()
        captions[torch.rand(BATCH) < DROPPED] = len(data["tokens"]) - 1  # the empty one
        cond = {"tokens": data["tokens"][captions].float(), "mask": data["mask"][captions]}
        x, noise, t = latents[rows], torch.randn(BATCH, *latents.shape[1:]), torch.randint(TIMES, (BATCH,))
        a = cumulative[t].view(-1, 1, 1, 1, 1)
        loss = (peer.predict(peer.network, a.sqrt() * x + (1 - a).sqrt() * noise, t, cond) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(peer.network.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(average.parameters(), peer.network.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        if step % 200 == 0:
            print(f"step {step} loss {loss.item():.4f} after {share * minutes:.1f} of {minutes:g} minutes", flush=True)
    return average, step


@torch.no_grad()
def sample(peer: Peer, network: nn.Module, cond: Cond, empty: Cond, shape: list[int], guidance: float) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502) without noise, from the same noise for the same row: `n c f h w`."""
    network.eval()
    count = len(cond["tokens"])
    x = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
    cumulative = alphas_cumprod()
    times = torch.linspace(TIMES - 1, 0, SAMPLED).round().long()
    without = {name: values.expand(count, *values.shape[1:]) for name, values in empty.items()}
    for now, later in zip(times, [*times[1:], None], strict=True):
        t = now.expand(count)
        noise = peer.predict(network, x, t, without)
        noise = noise + guidance * (peer.predict(network, x, t, cond) - noise)
        a = cumulative[now]
        next_a = cumulative[later] if later is not None else torch.ones(())
        x0 = ((x - (1 - a).sqrt() * noise) / a.sqrt()).clamp(-6, 6)  # of latents of unit RMS
        noise = (x - a.sqrt() * x0) / (1 - a).sqrt()
        x = next_a.sqrt() * x0 + (1 - next_a).sqrt() * noise
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("latte", "lucidrains"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    data = torch.load(arguments.data)
    shape = list(data["latents"].shape[1:])
    peer = {"latte": latte, "lucidrains": lucidrains}[arguments.peer](shape, data["tokens"].shape[2])
    parameters = sum(p.numel() for p in peer.network.parameters())
    network, steps = train(peer, data, arguments.minutes)
    empty = {"tokens": data["tokens"][-1:].float(), "mask": data["mask"][-1:]}
    made = {
        split: {scale: sample(peer, network, cond, empty, shape, scale) for scale in data["guidances"]}
        for split, cond in data["prompts"].items()
    }
    torch.save({"made": made, "steps": steps, "parameters": parameters}, arguments.out)


if __name__ == "__main__":
    main()
