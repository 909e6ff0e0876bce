"""CLIP scores against transformers' own computation, with a tiny CLIP made on the spot and the real tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reelwright.metrics.clip import (
    IMAGE_MEAN,
    ClipModel,
    Preprocessing,
    caption_cosines,
    clip_score,
    read_preprocessor_config,
)
from tiny_clip import save_tiny_clip

TOKENIZER = Path(__file__).parents[3] / "shared" / "tokenizers" / "clip"
CAPTIONS = [
    "a red circle moves left",
    "A group of dolphins are swimming in the ocean.",
    "l'été à Zürich, 3:30 pm — fußball & 猫!",
    "word " * 120,
]


def image_processor(**options):
    """The one of transformers that needs no torchvision, under whichever name this version has it."""
    import transformers

    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    return getattr(transformers, name)(**options)


@pytest.fixture(scope="module")
def videos() -> list[np.ndarray]:
    """Smooth colours and noise, of several sizes."""
    random = np.random.default_rng(0)
    sizes = [(40, 56), (32, 32), (97, 50), (20, 31)]
    return [random.integers(0, 256, (3, *size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> ClipModel:
    import transformers

    if not TOKENIZER.is_dir():
        pytest.skip("the tokenizer of CLIP is not in ../shared/tokenizers/clip")
    folder = save_tiny_clip(tmp_path_factory.mktemp("clip"), TOKENIZER)
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    preprocessing = Preprocessing.from_config(read_preprocessor_config(str(folder)), 32)
    return ClipModel(network, tokenizer, preprocessing, str(folder), "", torch.device("cpu"))


def test_scores_are_those_of_transformers(model, videos):
    """`CLIPModel`'s own logits, without its temperature, of its own processor's pixels."""
    features = [model.frame_features(video) for video in videos]
    measured = caption_cosines(features, model.text_features(CAPTIONS))
    processor = image_processor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    for video, caption, cosine in zip(videos, CAPTIONS, measured, strict=True):
        tokens = model.tokenizer([caption], padding=True, truncation=True, max_length=77, return_tensors="pt")
        pixels = processor([Image.fromarray(frame) for frame in video], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            out = model.network(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"],
                                pixel_values=pixels)  # fmt: skip
        own = (out.logits_per_text[0] / model.network.logit_scale.exp()).detach()
        assert cosine == pytest.approx(float(own.mean()), abs=1e-5)
    assert len(set(np.round(measured, 4))) == len(videos), "a test in which all are alike would show nothing"


def test_a_caption_scores_the_same_alone_and_in_company(model):
    together = model.text_features(CAPTIONS)
    alone = torch.cat([model.text_features([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_long_captions_are_counted_and_cut(model):
    assert model.longest == 77
    counts = model.count_tokens(CAPTIONS)
    assert counts[0] == 7 and counts[3] == 122


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 41}, "crop_size": {"height": 32, "width": 32}},
        {"size": {"height": 32, "width": 32}, "crop_size": 32},
        {
            "size": {"shortest_edge": 32},
            "crop_size": 32,
            "resample": 2,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    ],
)
def test_pixels_are_those_of_transformers(options, videos):
    preprocessing = Preprocessing.from_config(options, 32)
    processor = image_processor(**options)
    for video in videos:
        expected = processor([Image.fromarray(frame) for frame in video], return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(preprocessing(video), expected, atol=1e-5, rtol=0)


def test_a_configuration_may_leave_everything_out_or_be_of_the_old_form():
    plain = Preprocessing.from_config({}, 224)
    assert plain == Preprocessing.from_config({"size": 224, "crop_size": 224, "resample": 3}, 224)
    assert plain.mean == IMAGE_MEAN and plain.resample is Image.Resampling.BICUBIC


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"do_normalize": False}, "do_normalize = false"),
        ({"crop_size": 336}, "give no 224 x 224 pictures"),
        ({"size": 200, "crop_size": 224}, "give no 224 x 224 pictures"),
    ],
)
def test_a_preprocessing_that_is_not_known_is_refused(values, told):
    with pytest.raises(ValueError, match=told):
        Preprocessing.from_config(values, 224)


def test_a_model_directory_without_preprocessing_has_the_usual_one(tmp_path):
    assert read_preprocessor_config(str(tmp_path)) == {}


def test_cosines_and_scores():
    frames = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8]])]
    cosines = caption_cosines(frames, torch.tensor([[1.0, 0.0], [0.0, -1.0]]))
    np.testing.assert_allclose(cosines, [0.5, -0.8], atol=1e-7)
    np.testing.assert_allclose(clip_score(cosines), [1.25, 0.0])
    with pytest.raises(ValueError, match="one for each"):
        caption_cosines(frames, torch.ones(3, 2))
