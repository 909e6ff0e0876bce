"""Networks made elsewhere that measure videos, loaded in one way: safetensors only, known by their tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image

from reelwright.metrics.clip import ClipModel, Preprocessing, read_preprocessor_config
from reelwright.metrics.features import FeatureNetwork, clip_features, i3d_logits, i3d_pooled, videomae_features
from reelwright.models.foreign import content_hash, freeze, load_foreign
from reelwright.types import UsageError, UserError

CLIP = {"clip": "CLIPModel"}  # kind of the model, as its config.json names it -> class of transformers
CLIP_TOWER = {"clip_vision_model": "CLIPVisionModelWithProjection"}  # enough for features of pictures
VIDEOMAE = {"videomae": "VideoMAEModel"}
IMAGENET = {  # what VideoMAE's pixels are normalised by where its directory does not say
    "image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225), "resample": Image.Resampling.BILINEAR,
}  # fmt: skip


def load_clip(source: str, device: torch.device) -> ClipModel:
    """Any CLIP of transformers' kind by directory or hub id.

    UserError where it is not to be had, is no CLIP, or wants a preprocessing that is not known here.
    """
    import transformers

    field = "--clip"
    network, preprocessing, sha256 = _load(source, field, CLIP, {})
    tokenizer = load_foreign(
        lambda: transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False), source, field
    )
    return ClipModel(network.to(device), tokenizer, preprocessing, source, sha256, device)


def build_features(spec: str, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The network of KIND:SOURCE, where KIND is one of `KINDS`.

    i3d         Inception-I3D, its logits (Unterthiner et al. 2018): a safetensors file of the weights, or a TorchScript
                archive that takes float `b 3 f h w` in [-1, 1]
    i3d-pooled  the 1024 features before the logits; safetensors only
    clip        CLIP image embeddings, mean over the frames, so blind to their order; a directory or a hub id
    videomae    VideoMAE (Tong et al. 2022), mean over its last hidden states; a directory or a hub id

    UsageError for a specification that names nothing; UserError where the network cannot be loaded.
    """
    kind, colon, source = spec.partition(":")
    if kind not in KINDS or not colon or not source:
        known = ", ".join(f"{name}:{what}" for name, (_, what) in KINDS.items())
        raise UsageError(f"features = {spec}: not a feature network; give one of {known}")
    return KINDS[kind][0](source, torch.device(device))


def _clip(source: str, device: torch.device) -> FeatureNetwork:
    network, preprocessing, sha256 = _load(source, "features", CLIP | CLIP_TOWER, {})
    return clip_features(network.to(device), preprocessing, source, sha256, device)


def _videomae(source: str, device: torch.device) -> FeatureNetwork:
    network, preprocessing, sha256 = _load(source, "features", VIDEOMAE, IMAGENET)
    return videomae_features(network.to(device), preprocessing, source, sha256, device)


def _load(
    source: str, field: str, classes: Mapping[str, str], defaults: Mapping[str, Any]
) -> tuple[Any, Preprocessing, str]:
    """A network of transformers of one of these kinds, frozen, float32; its preprocessing; sha256 of its tensors."""
    import transformers

    def load(part: Any, **options: Any) -> Any:
        return load_foreign(lambda: part.from_pretrained(source, trust_remote_code=False, **options), source, field)

    settings = load(transformers.AutoConfig)
    if settings.model_type not in classes:
        wanted = " or ".join(classes)
        raise UserError(f"{field} = {source}: holds a {settings.model_type}, no {wanted}; give a folder or id of one")
    network, report = load(
        getattr(transformers, classes[settings.model_type]), use_safetensors=True, dtype=torch.float32,
        output_loading_info=True,
    )  # fmt: skip
    if missing := sorted(report["missing_keys"]):  # transformers would fill them at random
        raise UserError(
            f"{field} = {source}: {len(missing)} of its tensors are missing, as {missing[0]}; fetch it again"
        )
    freeze(network)
    values = {**defaults, **load_foreign(lambda: read_preprocessor_config(source), source, field)}
    try:
        preprocessing = Preprocessing.from_config(values, getattr(settings, "vision_config", settings).image_size)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{field} = {source}: {error}") from None
    return network, preprocessing, content_hash({}, network.state_dict())


KINDS: dict[str, tuple[Callable[[str, torch.device], FeatureNetwork], str]] = {
    "i3d": (i3d_logits, "FILE"),
    "i3d-pooled": (i3d_pooled, "FILE"),
    "clip": (_clip, "DIRECTORY_OR_HUB_ID"),
    "videomae": (_videomae, "DIRECTORY_OR_HUB_ID"),
}
