"""Captions and frames in CLIP's common space (Radford et al. 2021), and the scores made of their cosines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pixels the published models were trained on
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_SCORE_WEIGHT = 2.5  # Hessel et al. 2021, section 3
FRAMES_AT_ONCE = 64
CAPTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Preprocessing:
    """Frames as a CLIP takes them: resized on 8-bit pixels, cropped at the centre, scaled and normalised.

    Our own, since transformers' image processor gives other pixels where torchvision is installed than where it is
    not; this is the one without, which the published scores were made with.
    """

    resize: int | tuple[int, int]  # the shorter side, or (height, width)
    crop: tuple[int, int]  # height, width
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    resample: Image.Resampling = Image.Resampling.BICUBIC

    @classmethod
    def from_config(cls, values: Mapping[str, Any], image_size: int) -> Preprocessing:
        """From what preprocessor_config.json says; what it leaves out is as in the published models.

        ValueError for a step that is left out or that gives another size than the network's `image_size`.
        """
        for step in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
            if not values.get(step, True):
                raise ValueError(f"preprocessor_config.json: {step} = false: no preprocessing of a CLIP known here")
        size = values.get("size", image_size)
        if isinstance(size, Mapping):
            size = size["shortest_edge"] if size.get("shortest_edge") else (int(size["height"]), int(size["width"]))
        crop = values.get("crop_size", image_size)
        crop = (crop["height"], crop["width"]) if isinstance(crop, Mapping) else (crop, crop)
        shortest = size if isinstance(size, int) else min(size)
        if crop != (image_size, image_size) or shortest < image_size:
            raise ValueError(
                f"preprocessor_config.json: size {size} and crop {crop} give no {image_size} x {image_size} pictures, "
                "which the network takes"
            )
        return cls(
            size,
            crop,
            tuple(values.get("image_mean", IMAGE_MEAN)),
            tuple(values.get("image_std", IMAGE_STD)),
            Image.Resampling(values.get("resample", Image.Resampling.BICUBIC)),
        )

    def __call__(self, frames: np.ndarray) -> Tensor:
        """uint8 `f h w c` -> float `f c h w`."""
        height, width = frames.shape[1:3]
        if isinstance(self.resize, tuple):
            new_height, new_width = self.resize
        else:  # the longer side is cut to whole pixels, not rounded
            shorter = min(height, width)
            new_height, new_width = self.resize * height // shorter, self.resize * width // shorter
        crop_height, crop_width = self.crop
        top, left = (new_height - crop_height) // 2, (new_width - crop_width) // 2
        pictures = np.stack(
            [np.asarray(Image.fromarray(frame).resize((new_width, new_height), self.resample)) for frame in frames]
        )[:, top : top + crop_height, left : left + crop_width]
        pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return (pixels - mean) / std


def read_preprocessor_config(source: str) -> dict[str, Any]:
    """preprocessor_config.json of a model directory or hub id; empty where the model has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name = "preprocessor_config.json"
    path = Path(source) / name
    if not Path(source).is_dir():
        try:
            path = Path(hf_hub_download(source, name))
        except LocalEntryNotFoundError:  # not fetched: the model may have one, and its pixels would be wrong without
            raise
        except EntryNotFoundError:
            return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@dataclass(frozen=True)
class ClipModel:
    """A `transformers.CLIPModel` with its tokenizer and preprocessing. Features are unit vectors, float32, on the CPU.

    `sha256` is of the weights: two scores are comparable only where it is the same.
    """

    network: Any
    tokenizer: Any
    preprocessing: Preprocessing
    name: str
    sha256: str
    device: torch.device

    def count_tokens(self, captions: Sequence[str]) -> list[int]:
        """Tokens of each caption before it is cut to `longest`, the marks of beginning and end included."""
        return [len(ids) for ids in self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]]

    @property
    def longest(self) -> int:
        """Tokens of a caption that the network sees; its end is cut off beyond them."""
        return int(self.network.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def text_features(self, captions: Sequence[str]) -> Tensor:
        """Captions -> `n d`."""
        rows = []
        for start in range(0, len(captions), CAPTIONS_AT_ONCE):
            tokens = self.tokenizer(
                list(captions[start : start + CAPTIONS_AT_ONCE]),
                padding=True, truncation=True, max_length=self.longest, return_tensors="pt",
            ).to(self.device)  # fmt: skip
            hidden = self.network.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            rows.append(self.network.text_projection(hidden))
        return F.normalize(torch.cat(rows).float(), dim=1).cpu()

    @torch.no_grad()
    def frame_features(self, video: np.ndarray) -> Tensor:
        """uint8 `f h w c` -> `f d`."""
        rows = []
        for start in range(0, len(video), FRAMES_AT_ONCE):
            pixels = self.preprocessing(video[start : start + FRAMES_AT_ONCE]).to(self.device)
            rows.append(self.network.visual_projection(self.network.vision_model(pixel_values=pixels).pooler_output))
        return F.normalize(torch.cat(rows).float(), dim=1).cpu()


def caption_cosines(frames: Sequence[Tensor], captions: Tensor) -> np.ndarray:
    """Cosine of each video's caption (unit vectors `n d`) with its frames (`n` times `f d`), mean over the frames: `n`.

    float64.
    """
    if len(frames) != len(captions):
        raise ValueError(f"{len(frames)} videos and {len(captions)} captions: there must be one for each")
    pairs = zip(frames, captions, strict=True)
    return np.array([float((video.double() @ caption.double()).mean()) for video, caption in pairs])


def clip_score(cosines: np.ndarray) -> np.ndarray:
    """2.5 max(cosine, 0), the CLIPScore of Hessel et al. 2021 (eq. 1), here of a video's mean cosine."""
    return CLIP_SCORE_WEIGHT * np.maximum(cosines, 0)
