"""Our DiT against the Latte, CogVideoX and Wan transformers of diffusers: samples a second, as such and a FLOP.

    python benchmarks/denoisers.py [--rounds 3] [--threads 2] [--json FILE]

All are built from their configurations at one size: width, number of blocks, heads, MLP, tokens, text and batch, which
is checked by what their blocks are given (CogVideoX takes its text among the visual tokens, so its blocks see both).
Latte takes spatial and temporal blocks in turn, of which the former attend to the text, and so does `DiT factorised`
here; the others let every token attend to every other and to the text, as ours does by default (`DiT full`). Training
is forward, backward and a step of torch's AdamW on float32 weights, bf16 by autocast. Generation is one denoising step
with guidance, a forward of twice the batch without gradients, each as its owner runs it: ours under autocast as
`reelwright generate`, theirs as their pipelines load weights for the precision.

All take turns in one process on the same threads: A B C C B A is a round. A figure is the median of the rounds, a ratio
the median of their ratios, so that a machine whose speed drifts slows all. Processor time is that of all threads.
FLOPs are those of the matrix products (torch's counter), attention among them. In the second table every column says
how many times ours is the best of theirs: samples a second by the clock and by processor time, samples a second per
FLOP a sample costs, and FLOPs a second (whose best is the one that uses the machine best).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from reelwright.console import Progress, print_table
from reelwright.models.dit import DiT, DiTConfig
from reelwright.training.devices import DTYPES, autocast, resolve_precision
from reelwright.types import Size, Text

CPU = torch.device("cpu")
PATCH = 2  # latents a side of a token; one frame of latents each
GUIDANCE = 6.0
EQUAL_TARGET, SHIPPED_TARGET = 1.2, 2.5


@dataclass(frozen=True)
class Setting:
    """What every denoiser is built for and fed with."""

    width: int = 256
    depth: int = 8
    heads: int = 4
    grid: Size = Size(5, 8, 8)  # tokens
    channels: int = 16
    text_length: int = 77  # CLIP's
    text_width: int = 512
    batch: int = 16

    @property
    def tokens(self) -> int:
        return self.grid.frames * self.grid.height * self.grid.width

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x_t `b c f h w`, t `b` in [0, 1], text `b l text_width`."""
        draw = torch.Generator().manual_seed(0)
        latent = (self.grid.frames, PATCH * self.grid.height, PATCH * self.grid.width)
        x = torch.randn(self.batch, self.channels, *latent, generator=draw)
        text = torch.randn(self.batch, self.text_length, self.text_width, generator=draw)
        return x, torch.rand(self.batch, generator=draw), text


@dataclass(frozen=True)
class Contender:
    module: nn.Module
    blocks: tuple[nn.Module, ...]  # given the visual tokens first, or as hidden_states
    text_in: nn.Module  # given the text
    predict: Callable[[Any, Tensor, Tensor, Tensor], Tensor]  # (module, x_t `b c f h w`, t, text) -> of x_t's shape
    ours: bool = False

    def __call__(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return self.predict(self.module, x, t, text)


def our_dit(s: Setting, **options: Any) -> Contender:
    config = DiTConfig(width=s.width, depth=s.depth, heads=s.heads, patch=(1, PATCH, PATCH), **options)
    module = DiT(config, s.channels, s.text_width)

    def predict(module: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return module(x, t, Text(text, torch.ones(text.shape[:2], dtype=torch.bool)))

    return Contender(module, tuple(module.blocks), module.text_in, predict, ours=True)


def latte(s: Setting) -> Contender:
    """With the choices of the published Latte-1; its `num_layers` counts pairs of a spatial and a temporal block."""
    from diffusers import LatteTransformer3DModel

    module: Any = LatteTransformer3DModel(
        num_attention_heads=s.heads, attention_head_dim=s.width // s.heads, num_layers=s.depth // 2,
        in_channels=s.channels, cross_attention_dim=s.width, caption_channels=s.text_width, attention_bias=True,
        sample_size=PATCH * s.grid.height, patch_size=PATCH, video_length=s.grid.frames,
        activation_fn="gelu-approximate", norm_type="ada_norm_single", num_embeds_ada_norm=1000,
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip

    def predict(module: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return module(x, 1000 * t, text, return_dict=False)[0]

    blocks = (*module.transformer_blocks, *module.temporal_transformer_blocks)
    return Contender(module, blocks, module.caption_projection, predict)


def cogvideox(s: Setting) -> Contender:
    from diffusers import CogVideoXTransformer3DModel

    module: Any = CogVideoXTransformer3DModel(
        num_attention_heads=s.heads, attention_head_dim=s.width // s.heads, num_layers=s.depth,
        in_channels=s.channels, out_channels=s.channels, text_embed_dim=s.text_width, patch_size=PATCH,
        max_text_seq_length=s.text_length, sample_height=PATCH * s.grid.height, sample_width=PATCH * s.grid.width,
        sample_frames=4 * (s.grid.frames - 1) + 1,
    )  # fmt: skip

    def predict(module: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return module(x.transpose(1, 2), text, 1000 * t, return_dict=False)[0].transpose(1, 2)

    return Contender(module, tuple(module.transformer_blocks), module.patch_embed.text_proj, predict)


def wan(s: Setting) -> Contender:
    from diffusers import WanTransformer3DModel

    module: Any = WanTransformer3DModel(
        num_attention_heads=s.heads, attention_head_dim=s.width // s.heads, num_layers=s.depth, ffn_dim=4 * s.width,
        in_channels=s.channels, out_channels=s.channels, text_dim=s.text_width, patch_size=(1, PATCH, PATCH),
    )  # fmt: skip

    def predict(module: Any, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        return module(x, 1000 * t, text, return_dict=False)[0]

    return Contender(module, tuple(module.blocks), module.condition_embedder.text_embedder, predict)


DENOISERS: dict[str, Callable[[Setting], Contender]] = {
    "DiT full": our_dit,
    "DiT factorised": lambda s: our_dit(s, layout="factorised", text_blocks="spatial"),
    "Latte": latte,
    "CogVideoX": cogvideox,
    "Wan": wan,
}
OURS, THEIRS = ("DiT full", "DiT factorised"), ("Latte", "CogVideoX", "Wan")


def check_same(contender: Contender, setting: Setting) -> None:
    """AssertionError unless each of `depth` blocks is given every token at the width once, and the text comes whole."""
    rows: list[tuple[int, int]] = []
    texts: list[tuple[int, ...]] = []

    def see_block(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden: Tensor = positional[0] if positional else named["hidden_states"]
        rows.append((hidden.numel() // hidden.shape[-1], hidden.shape[-1]))

    def see_text(_: nn.Module, positional: tuple[Any, ...]) -> None:
        texts.append(tuple(positional[0].shape))

    hooks = [block.register_forward_pre_hook(see_block, with_kwargs=True) for block in contender.blocks]
    hooks.append(contender.text_in.register_forward_pre_hook(see_text))
    x, t, text = setting.inputs()
    with torch.no_grad():
        out = contender(x, t, text)
    for hook in hooks:
        hook.remove()
    assert out.shape == x.shape, (out.shape, x.shape)
    assert rows == [(setting.batch * setting.tokens, setting.width)] * setting.depth, rows
    assert texts == [(setting.batch, setting.text_length, setting.text_width)], texts


def count_flops(contender: Contender, setting: Setting) -> tuple[int, int]:
    """FLOPs a sample of (a training step, a guided denoising step)."""
    x, t, text = setting.inputs()
    totals = []
    with sdpa_kernel(SDPBackend.MATH):  # as products, which are counted; the CPU's fused kernel is not
        with FlopCounterMode(display=False) as counter:
            F.mse_loss(contender(x, t, text), x).backward()
        totals.append(counter.get_total_flops() // setting.batch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            contender(x, t, text)
        totals.append(2 * counter.get_total_flops() // setting.batch)
    contender.module.zero_grad()
    return totals[0], totals[1]


# -- what is timed: one step


def training_step(contender: Contender, setting: Setting, precision: Any) -> Callable[[], None]:
    x, t, text = setting.inputs()
    target = torch.randn_like(x)
    contender.module.train()
    optimizer = torch.optim.AdamW(contender.module.parameters(), lr=1e-4)

    def step() -> None:
        with autocast(CPU, precision):
            prediction = contender(x, t, text)
        F.mse_loss(prediction.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def generation_step(contender: Contender, setting: Setting, precision: Any) -> Callable[[], None]:
    x, t, text = setting.inputs()
    both = torch.cat([x, x]), torch.cat([t, t]), torch.cat([text, text])
    if not contender.ours:
        module: Any = contender.module
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            module = type(module).from_pretrained(folder, torch_dtype=DTYPES[precision])
        contender = replace(contender, module=module)
        both = both[0].to(DTYPES[precision]), both[1], both[2].to(DTYPES[precision])
    contender.module.eval()

    @torch.no_grad()
    def step() -> None:
        with autocast(CPU, precision if contender.ours else "fp32"):
            positive, negative = contender(*both).float().chunk(2)
        torch.lerp(negative, positive, GUIDANCE)  # negative + guidance (positive - negative)

    return step


# -- measuring


Key = tuple[str, str, str]  # training or generation, denoiser, precision


@dataclass(frozen=True)
class Times:
    """Seconds a step, one value a round."""

    wall: list[float]
    processor: list[float]


def measure(steps: dict[Key, Callable[[], None]], rounds: int, repeats: int, progress: Progress) -> dict[Key, Times]:
    """Rounds of everything once forth and once back, `repeats` steps a turn, after a warm-up of one step each."""
    times = {key: Times([], []) for key in steps}
    for step in steps.values():
        step()
    for number in range(rounds):
        progress("rounds", number, rounds)
        for times_of_key in times.values():
            times_of_key.wall.append(0.0)
            times_of_key.processor.append(0.0)
        for key in [*steps, *reversed(steps)]:
            wall, processor = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                steps[key]()
            times[key].wall[-1] += (time.perf_counter() - wall) / (2 * repeats)
            times[key].processor[-1] += (time.process_time() - processor) / (2 * repeats)
    return times


def ratios_of(times: dict[Key, Times], ours: Key, theirs: Key) -> tuple[float, float]:
    """How many times as fast ours is: by the clock, by processor time."""
    mine, other = times[ours], times[theirs]
    wall = median(b / a for a, b in zip(mine.wall, other.wall, strict=True))
    return wall, median(b / a for a, b in zip(mine.processor, other.processor, strict=True))


def verdicts(times: dict[Key, Times], flops: dict[tuple[str, str], int], precisions: list[str]) -> list[dict[str, Any]]:
    """Each of ours against the best of theirs, at equal precision and as they ship (theirs fp32, ours `auto`)."""
    shipped = resolve_precision("auto", CPU)
    pairs = [(precision, precision) for precision in precisions]
    if shipped != "fp32" and {shipped, "fp32"} <= set(precisions):
        pairs.append((shipped, "fp32"))
    found = []
    for what in ("training", "generation"):
        for name in OURS:
            for own, other in pairs:
                ratios = [
                    (wall, processor, wall * rival_flops / own_flops, wall * own_flops / rival_flops)
                    for rival in THEIRS
                    for wall, processor in [ratios_of(times, (what, name, own), (what, rival, other))]
                    for own_flops, rival_flops in [(flops[what, name], flops[what, rival])]
                ]
                least = [round(min(values), 3) for values in zip(*ratios, strict=True)]
                found.append(
                    {
                        "what": what, "ours": name, "precision": own, "theirs": other, "speed": least[0],
                        "processor": least[1], "per_flop": least[2], "flops": least[3],
                        "target": EQUAL_TARGET if own == other else SHIPPED_TARGET,
                    }
                )  # fmt: skip
    return found


def report(
    setting: Setting, times: dict[Key, Times], flops: dict[tuple[str, str], int], parameters: dict[str, int]
) -> list[dict[str, Any]]:
    rows = []
    for (what, name, precision), taken in times.items():
        rate, gflop = setting.batch / median(taken.wall), flops[what, name] / 1e9
        rows.append(
            {
                "what": what, "denoiser": name, "precision": precision, "parameters": parameters[name],
                "gflop_per_sample": round(gflop, 3), "samples_per_second": round(rate, 2),
                "processor_ms_per_sample": round(1e3 * median(taken.processor) / setting.batch, 1),
                "samples_per_second_per_gflop": round(rate / gflop, 3), "gflops": round(rate * gflop, 1),
            }
        )  # fmt: skip
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Setting()
    for name in ("width", "depth", "heads", "text_length", "batch"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(default, name))
    parser.add_argument("--grid", type=int, nargs=3, default=default.grid.tuple, help="tokens: frames, height, width")
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2, help="steps a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.depth % 2 or arguments.grid[1] != arguments.grid[2]:
        parser.error("--depth must be even and the grid's height its width: Latte knows only such")
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    names = ("width", "depth", "heads", "text_length", "batch")
    setting = Setting(grid=Size(*arguments.grid), **{name: getattr(arguments, name) for name in names})
    load = os.getloadavg()
    flops, parameters = {}, {}
    steps: dict[Key, Callable[[], None]] = {}
    with Progress() as progress:
        for number, (name, make) in enumerate(DENOISERS.items()):
            progress("building and counting", number, len(DENOISERS))
            contender = make(setting)
            check_same(contender, setting)
            parameters[name] = sum(p.numel() for p in contender.module.parameters())
            flops["training", name], flops["generation", name] = count_flops(contender, setting)
            for precision in arguments.precisions:
                steps["training", name, precision] = training_step(contender, setting, precision)
                steps["generation", name, precision] = generation_step(make(setting), setting, precision)
        times = measure(dict(sorted(steps.items())), arguments.rounds, arguments.repeats, progress)
    rows, found = report(setting, times, flops, parameters), verdicts(times, flops, arguments.precisions)
    about = f"width {setting.width}, {setting.depth} blocks, {setting.tokens} tokens, text of {setting.text_length}, "
    about += f"batch {setting.batch}, {arguments.threads} threads"
    rows.sort(key=lambda row: (row["what"] != "training", row["precision"]))
    print_table(list(rows[0]), [list(row.values()) for row in rows], about)
    print()
    print_table(
        list(found[0]), [list(row.values()) for row in found], "ours against the best of theirs: how many times as fast"
    )
    if arguments.json:
        machine = {"threads": arguments.threads, "cores": os.cpu_count(), "load": [load, os.getloadavg()]}
        raw = {" ".join(key): [taken.wall, taken.processor] for key, taken in times.items()}
        figures = {"about": about, "rows": rows, "verdicts": found, "seconds_wall_and_processor": raw}
        figures = {**figures, **machine, "torch": torch.__version__}
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
