"""Does the CLIP score see whether videos follow their captions?

A tiny CLIP is trained from nothing for a minute on single frames of rendered moving shapes, saved as transformers saves
one, and loaded by `reelwright evaluate`'s own code. On renders of prompts it never saw, the matched row must lie
clearly above the shuffled one; on the same renders in grey, where colours cannot be told, it must fall; on noise there
must be no difference. The renders' own captions are split as the shapes benchmark splits them.

    python benchmarks/clip_score.py --json clip_score.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reelwright.console import Progress, print_table
from reelwright.metrics.clip import Preprocessing
from reelwright.quality import Measured, Subjects, VideoSet, load_clip, measure_clip
from reelwright.randomness import keyed_generator
from reelwright.shapes.controls import noise
from reelwright.shapes.files import training_prompts
from reelwright.shapes.renderer import render
from reelwright.shapes.splits import prompts
from reelwright.types import Size

SIZE, FPS = Size(8, 64, 64), 4.0
CLIPS, BATCH, LEARNING_RATE = 1500, 64, 1e-3
SCORED = 128  # videos a split
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WIDTH, DEPTH = 96, 3


def write_tokenizer(folder: Path, captions: list[str]) -> int:
    """A CLIP tokenizer whose byte pairs are those of the captions; returns its number of tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    for token in (*sorted(f"{letter}</w>" for letter in alphabet), BEGIN, END):
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer.model.save(str(folder))
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "bos_token": BEGIN, "eos_token": END, "unk_token": END,
                "pad_token": END, "model_max_length": 77}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(vocabulary)


def train_clip(folder: Path, seconds: float, progress: Progress) -> dict[str, Any]:
    """Contrastive training (Radford et al. 2021, figure 3) on single frames for `seconds`; saved in `folder`."""
    import transformers

    drawn = training_prompts(CLIPS, 0, duration_seconds=SIZE.frames / FPS)
    captions = [prompt.caption for prompt in drawn]
    frames = np.stack([render(prompt.scene, SIZE, FPS) for prompt in drawn])  # clips f h w c
    vocabulary = write_tokenizer(folder, captions)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    begin, end = tokenizer.convert_tokens_to_ids([BEGIN, END])
    layers = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": DEPTH,
              "num_attention_heads": 4, "projection_dim": WIDTH}  # fmt: skip
    torch.manual_seed(0)
    network = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**layers, "vocab_size": vocabulary, "max_position_embeddings": 32, "bos_token_id": begin,
                         "eos_token_id": end, "pad_token_id": end},
            vision_config={**layers, "image_size": SIZE.height, "patch_size": 8},
            projection_dim=WIDTH,
        )
    )  # fmt: skip
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=32, return_tensors="pt")
    preprocessing = Preprocessing.from_config({}, SIZE.height)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    draw = keyed_generator("clip benchmark")
    started, steps, loss = time.perf_counter(), 0, torch.tensor(0.0)
    while (elapsed := time.perf_counter() - started) < seconds:
        chosen = torch.randperm(CLIPS, generator=draw)[:BATCH]
        moments = torch.randint(SIZE.frames, (BATCH,), generator=draw)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (steps + 1) / 20) * (1 - elapsed / seconds)
        out = network(
            input_ids=tokens["input_ids"][chosen], attention_mask=tokens["attention_mask"][chosen],
            pixel_values=preprocessing(frames[chosen.numpy(), moments.numpy()]), return_loss=True,
        )  # fmt: skip
        loss = out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        progress("training a tiny CLIP", min(int(elapsed), int(seconds)), int(seconds))
    network.eval().save_pretrained(folder)
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "seconds": round(time.perf_counter() - started, 1),
        "steps": steps,
        "threads": torch.get_num_threads(),
        "loss": round(float(loss.detach()), 3),
        "loss of chance": round(float(np.log(BATCH)), 3),
    }


def grey(video: np.ndarray) -> np.ndarray:
    """Every pixel the mean of its three colours."""
    return np.repeat(video.mean(axis=-1, keepdims=True).round().astype(np.uint8), 3, axis=-1)


def score_split(split: str, folder: Path, progress: Progress) -> Measured:
    """The CLIP score of held-out renders of one split, of their grey copies, and of noise."""
    drawn = prompts(split, SCORED, seed=1, duration_seconds=SIZE.frames / FPS)  # pyright: ignore[reportArgumentType]
    captions = [prompt.caption for prompt in drawn]
    videos = [render(prompt.scene, SIZE, FPS) for prompt in drawn]
    clip = load_clip(str(folder), torch.device("cpu"))
    spoilt = {"grey renders": [grey(v) for v in videos], "noise": [noise(v, i) for i, v in enumerate(videos)]}
    total = Measured()
    for name, made in spoilt.items():
        real = VideoSet("renders", videos, captions) if name == "noise" else None
        measured = measure_clip(Subjects(VideoSet(name, made, captions), real, split, SIZE, FPS), clip, 0, progress)
        total.rows += measured.rows
        total.tables += measured.tables
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, Progress() as progress:
        folder = Path(name)
        figures["training"] = train_clip(folder, arguments.seconds, progress)
        scored = {split: score_split(split, folder, progress) for split in ("in_distribution", "held_out_pairs")}
    print_table(["figure", "value"], [[k, v] for k, v in figures["training"].items()], "a tiny CLIP on moving shapes")
    rows = []
    for split, measured in scored.items():
        figures[split] = measured.rows
        rows += [[split, *cells] for _, _, table in measured.tables for cells in table]
        gain = next(r for r in measured.rows if r["row"] == "renders" and r["metric"].endswith("shuffled"))
        rows.append([split, "renders, matched minus shuffled", *_interval(gain), "", "", str(gain["n"])])
    print()
    print_table(["split", "row", "cosine, frame mean", "x 100", "CLIPScore", "n"], rows, "prompts never trained on")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def _interval(row: dict[str, Any]) -> list[str]:
    return [f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"]


if __name__ == "__main__":
    main()
