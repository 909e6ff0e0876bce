"""What memory is used for, and what the settings against it win.

    python benchmarks/memory.py [--frames 120 480] [--json FILE]

Table 1: bytes that autograd keeps for the backward pass of one clip, by `model.gradient_checkpointing`, counted (not
timed) in fp32 on a CPU; the inputs of recomputed blocks are added, since checkpointing keeps those.
Table 2: weights on the device while generating, by `--offload`, of full-size networks on the meta device: counted from
their shapes, in the precision their weights are published in. Activations come on top.
Table 3: peak memory of a process that makes one long video, above what it has with the model loaded, whole and in
windows of 16 frames: random weights, 2 steps, no guidance, 256 tokens a frame. Freed blocks are given back at once (a
fixed MALLOC_MMAP_THRESHOLD_), else the allocator's habits are measured. The pixels themselves are `raw`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from reelwright.bundle import build_bundle
from reelwright.console import print_table
from reelwright.generate import Compute, generate_videos
from reelwright.models.dit import DiTConfig
from reelwright.models.layers import recomputed
from reelwright.models.offload import find_blocks, streaming_bytes
from reelwright.models.spatial import VideoTransformerConfig
from reelwright.pretrained.cogvideox import CogVideoXConfig
from reelwright.pretrained.hunyuan import HunyuanConfig
from reelwright.pretrained.ltx import LTXConfig
from reelwright.pretrained.wan import WanConfig
from reelwright.randomness import keyed_normal
from reelwright.recipe import Recipe, SamplingConfig
from reelwright.training.memory import SavedActivations
from reelwright.types import Size, Text

MIB, GIB = 2**20, 2**30
TRAINED = {  # name -> (config, channels, latent size): one clip of training
    "DiT-S, 1,024 tokens": (DiTConfig.parse({"size": "S"}), 16, (4, 16, 16)),
    "VideoTransformer, 2 frames of 1,024": (VideoTransformerConfig.parse({"temporal": True}), 4, (2, 32, 32)),
}
FULL_SIZE = {  # name -> (config, channels, text width)
    "DiT-XL": (DiTConfig.parse({"size": "XL"}), 16, 512, torch.float32),
    "VideoTransformer": (VideoTransformerConfig.parse({"temporal": True}), 4, 512, torch.float32),
    "LTX-Video 2B": (LTXConfig.parse({"dtype": "bfloat16"}), 128, 4096, torch.bfloat16),
    "CogVideoX 5B": (
        CogVideoXConfig.parse(
            {
                "dtype": "bfloat16",
                "config": {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
            }
        ),
        16, 4096, torch.bfloat16,
    ),
    "HunyuanVideo": (HunyuanConfig.parse({"dtype": "bfloat16"}), 16, 4096, torch.bfloat16),
    "Wan 2.1 14B": (WanConfig.parse({"dtype": "bfloat16"}), 16, 4096, torch.bfloat16),
}  # fmt: skip
LONG = {
    "video_transformer": {"type": "video_transformer", "width": 256, "depth": 4, "heads": 4, "temporal": True},
    "dit": {"type": "dit", "width": 256, "depth": 4, "heads": 4, "layout": "factorised"},
}
WINDOW, SIDE = 16, 128


def kept_for_backward() -> list[dict[str, Any]]:
    rows = []
    for name, (config, channels, size) in TRAINED.items():
        values = config.plain()
        kept: dict[bool | int, float] = {}
        for setting in (False, 4, 2, True):
            torch.manual_seed(0)
            model = type(config).parse({**values, "gradient_checkpointing": setting}).build(channels, 512).train()
            x, t = keyed_normal((1, channels, *size), "x"), torch.full((1,), 0.5)
            text = Text(keyed_normal((1, 77, 512), "text"), torch.ones(1, 77, dtype=torch.bool))
            with SavedActivations(model) as saved:
                model(x, t, text).square().mean()
            again = sum(recomputed(setting, index) for index in range(model.config.depth))
            tokens = model.check_size(Size(*size)).frames * size[1] * size[2]
            kept[setting] = (saved.bytes + again * tokens * model.config.width * 4) / MIB
        labels = {False: "false", 4: "4", 2: "2", True: "true"}
        rows.append({"model": name, **{labels[setting]: f"{mib:.0f} MiB" for setting, mib in kept.items()}})
    return rows


def on_the_device() -> list[dict[str, Any]]:
    rows = []
    for name, (config, channels, text_width, dtype) in FULL_SIZE.items():
        with torch.device("meta"):
            network = config.build(channels, text_width).to(dtype)
        whole = sum(p.nbytes for p in network.parameters())
        block = streaming_bytes(network)
        rows.append(
            {
                "model": name,
                "weights": str(dtype).removeprefix("torch."),
                "blocks": len(find_blocks(network)),
                "none, model": f"{whole / GIB:.2f} GiB",
                "block": f"{block / GIB:.2f} GiB",
            }
        )
    return rows


def long_recipe(folder: Path, model: str) -> Recipe:
    return Recipe.parse(
        {
            "run_dir": str(folder / "run"),
            "cache_dir": str(folder / "cache"),
            "data": {"path": str(folder), "frames": WINDOW, "height": SIDE, "width": SIDE},
            "codec": {"type": "dct", "block": [1, 8, 8], "channels": 4},
            "text": {"type": "native", "vocab_size": 300, "width": 32, "depth": 1},
            "model": LONG[model],
            "train": {"precision": "fp32", "device": "cpu"},
        }
    )


def make_long(folder: Path, model: str, frames: int, window: int) -> None:
    """In a process of its own: print the peak of memory before and after, KiB."""
    recipe = long_recipe(folder, model)
    codec: Any = recipe.codec.build()
    text: Any = recipe.text.build()
    codec.fit([keyed_normal((1, 3, 2, SIDE, SIDE), "video").clamp(-1, 1)])
    text.fit(["waves"])
    bundle = build_bundle(recipe, codec.state_dict(), text.tokenizer_json())
    sampling = SamplingConfig(steps=2, guidance=1.0, window_frames=window)
    compute = Compute(torch.device("cpu"))
    first = Size(WINDOW, SIDE, SIDE)
    generate_videos(bundle, ["waves"], [0], first, sampling.model_copy(update={"window_frames": 0}), compute)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (video,) = generate_videos(bundle, ["waves"], [0], Size(frames, SIDE, SIDE), sampling, compute)
    assert video.shape == (frames, SIDE, SIDE, 3)
    print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))


def peaks(frames: list[int], folder: Path) -> list[dict[str, Any]]:
    rows = []
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**16)}
    for model in LONG:
        for count in frames:
            for window in (0, WINDOW):
                started = time.perf_counter()
                child = [sys.executable, __file__, "--child", str(folder), model, str(count), str(window)]
                before, after = json.loads(subprocess.check_output(child, env=environment))
                rows.append(
                    {
                        "model": model,
                        "frames": count,
                        "window": window or "whole",
                        "above_16_frames_mib": round((after - before) / 1024),
                        "peak_mib": round(after / 1024),
                        "raw_mib": round(count * SIDE * SIDE * 3 / MIB),
                        "wall_seconds": round(time.perf_counter() - started, 1),
                    }
                )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print_table(list(rows[0]), [list(row.values()) for row in rows], f"\n{title}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[120, 480])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        folder, model, frames, window = arguments.child
        make_long(Path(folder), model, int(frames), int(window))
        return
    activations, weights = kept_for_backward(), on_the_device()
    show("kept for the backward pass of one clip, by model.gradient_checkpointing", activations)
    show("weights on the device while generating, by --offload", weights)
    with tempfile.TemporaryDirectory() as name:
        lengths = peaks(arguments.frames, Path(name))
    show(f"peak memory of making one video, {SIDE}x{SIDE}", lengths)
    if arguments.json:
        figures = {"kept_for_backward": activations, "on_the_device": weights, "by_length": lengths}
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
