"""Other projects' networks in the moving-shapes benchmark: as long, on our latents, told our captions' embeddings.

    python benchmarks/peers.py runs/shapes --peer latte --minutes 15 --json latte.json
    python benchmarks/peers.py runs/shapes --peer lucidrains --python peer/bin/python --minutes 15

RUN is a finished run on moving shapes. The peer's network is trained from nothing on the latents in the run's cache,
told what the run's trained encoder makes of the captions, for `--minutes`; the prompts' latents it makes are decoded by
the run's codec and read by the checker, beside the renderer's clips through the codec. Every guidance of the list is
measured and shown, the peer's best counts. `latte` is diffusers' LatteTransformer3DModel, `lucidrains` the Unet3D of
video-diffusion-pytorch, for which `--python` names the interpreter of an environment that has it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from reelwright.benchmark import tabulate
from reelwright.benchmark.rows import Row
from reelwright.console import Progress, print_table
from reelwright.diffusion.guidance import join_texts
from reelwright.generate import Compute, decode_latents
from reelwright.loading import LoadedModel, load_model
from reelwright.prepare import open_prepared
from reelwright.shapes.files import read_coverage, read_track
from reelwright.shapes.scores import score
from reelwright.shapes.splits import prompts as draw_prompts
from reelwright.shapes.tracks import reader_of
from reelwright.shapes.world import Prompt
from reelwright.types import Text

SPLITS = ("in_distribution", "held_out_pairs")
GUIDANCES = (1.0, 1.5, 3.0)
AT_ONCE = 512


@torch.no_grad()
def embedded(model: LoadedModel, captions: list[str]) -> Text:
    """What the run's encoder makes of captions."""
    encoder = model.bundle.text
    parts = [captions[start : start + AT_ONCE] for start in range(0, len(captions), AT_ONCE)]
    return join_texts([encoder(encoder.tokenize(part)) for part in parts])


def tensors(model: LoadedModel, asked: dict[str, list[Prompt]]) -> dict[str, Any]:
    """All that a peer is given."""
    training = open_prepared(model.recipe).training
    samples = [training.samples[index] for index in sorted(training.samples)]
    latents = [
        training.cache.stack([sample.latent_keys[0] for sample in samples[start : start + AT_ONCE]])["mean"].float()
        for start in range(0, len(samples), AT_ONCE)
    ]
    captions = [caption for sample in samples for caption in sample.captions]
    first = torch.tensor([0, *(len(sample.captions) for sample in samples)]).cumsum(0)
    texts = embedded(model, [*captions, ""])
    told = {split: embedded(model, [prompt.caption for prompt in prompts]) for split, prompts in asked.items()}
    return {
        "latents": torch.cat(latents),
        "tokens": texts.values.half(),
        "mask": texts.mask,
        "first_caption": first,
        "prompts": {split: {"tokens": text.values, "mask": text.mask} for split, text in told.items()},
        "guidances": list(GUIDANCES),
    }


def read(model: LoadedModel, prompts: list[Prompt], latents: torch.Tensor, name: str, split: str) -> Row:
    reader, fps = reader_of(read_track(model.recipe.data.path)), model.recipe.data.fps
    readings = []
    for some in latents.split(32):
        readings += [reader(video, fps) for video in decode_latents(model.bundle, some, Compute(torch.device("cpu")))]
    return Row(name, split, score(zip(prompts, readings, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run on moving shapes")
    parser.add_argument("--peer", choices=("latte", "lucidrains"), required=True)
    parser.add_argument("--python", default=sys.executable, help="the interpreter of an environment with the peer")
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--prompts", type=int, default=256, help="of each split")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.run)
    data, size = model.recipe.data, model.recipe.size
    asked = {
        split: draw_prompts(
            split, arguments.prompts, 0, read_track(data.path), duration_seconds=size.frames / data.fps,
            coverage=read_coverage(data.path),
        )
        for split in SPLITS
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        given, made = Path(scratch) / "given.pt", Path(scratch) / "made.pt"
        torch.save(tensors(model, asked), given)
        started = time.perf_counter()
        subprocess.run(
            [arguments.python, str(Path(__file__).with_name("peer_networks.py")), arguments.peer, str(given),
             str(made), "--minutes", str(arguments.minutes), "--threads", str(arguments.threads)],
            check=True,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        result = torch.load(made)
    rows = []
    with Progress() as progress:
        for number, (split, by_guidance) in enumerate(result["made"].items()):
            progress("reading", number, len(SPLITS))
            rows += [
                read(model, asked[split], latents, f"{arguments.peer}, guidance {scale:g}", split)
                for scale, latents in by_guidance.items()
            ]
    about = f"{result['parameters']:,} parameters, {result['steps']} steps in {arguments.minutes:g} minutes of training"
    print_table(*tabulate(rows), about)
    if arguments.json:
        figures = [figure for row in rows for figure in row.figures()]
        told = {"peer": arguments.peer, "about": about, "seconds": seconds, "scores": figures}
        arguments.json.write_text(json.dumps({**told, "torch": torch.__version__}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
