"""A fine-tuned pretrained family -> the pipeline it came from, which diffusers runs, with card and index beside it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from reelwright.config import MAX_YAML_BYTES, parse_yaml, to_yaml
from reelwright.export.description import Description, write_pipeline_card
from reelwright.loading import StoredModel, build_model, full_precision
from reelwright.models.exported import (
    CARD,
    FORMAT_VERSION,
    INDEX,
    NETWORK_CONFIG,
    PIPELINE_INDEX,
    RECIPE,
    PipelineIndex,
    without_place,
    write_index,
)
from reelwright.models.foreign import load_foreign
from reelwright.pretrained.base import FamilyConfig
from reelwright.training.lora import merge
from reelwright.types import UsageError, UserError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TERMS = re.compile(r"(?i).*(licen[sc]e|notice).*(?<!safetensors)")  # the files that say what one may do with the base
HUB_TERMS = ["README.md", "LICEN[SC]E*", "licen[sc]e*", "NOTICE*"]  # which diffusers leaves on the hub
FRONT = re.compile(r"\s*---\n(.*?)\n---\s*\n", re.DOTALL)  # of a model card: YAML between two lines of dashes
KEPT = ("license", "license_name", "license_link", "base_model")  # of the base's card, what holds for ours too


def is_pipeline(stored: StoredModel) -> bool:
    """Whether a model is a family's network within a pipeline of diffusers."""
    model, recipe = stored.recipe.model, stored.recipe
    if not (isinstance(model, FamilyConfig) and model.fits_pipeline and model.model is not None and model.subfolder):
        return False
    return all(getattr(part, "model", None) == model.model for part in (recipe.codec, recipe.text))  # its own, frozen


def check_beside_base(stored: StoredModel, target: Path, out: Path) -> None:
    """UsageError where the pipeline would replace its own base, which the run cannot be used without."""
    model: Any = stored.recipe.model
    base = Path(model.model)
    if target.exists() and base.exists() and target.samefile(base):
        raise UsageError(f"{out}: the base of this very run (model.model), which still needs it; name another OUT")


def write_pipeline(stored: StoredModel, folder: Path, described: Description) -> None:
    """The pipeline the network came from, with what was trained in its place: `DiffusionPipeline.from_pretrained`.

    Adapters are added to the weights. UserError where the pipeline is not there any more.
    """
    model: Any = stored.recipe.model
    source = _pipeline_folder(model.model)
    classes = _components(source)
    bundle = build_model(full_precision(stored)).bundle
    with torch.no_grad():
        merge(bundle.denoiser)
    networks: dict[str, Any] = bundle.denoiser.by_folder()  # pyright: ignore[reportCallIssue]
    for file in _needed(source, classes.keys() - networks.keys()):
        copy = folder / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    for name, network in networks.items():
        _save_network(network, folder / name)
    (folder / RECIPE).write_text(to_yaml(stored.recipe.plain()), encoding="utf-8")
    parts = [_part(folder / name, classes[name], networks.get(name)) for name in sorted(classes)]
    card = write_pipeline_card(stored, described, parts, _terms(source / CARD))
    (folder / CARD).write_text(card, encoding="utf-8")
    write_index(
        folder,
        PIPELINE_INDEX,
        lambda files: PipelineIndex(
            format_version=FORMAT_VERSION,
            origin=stored.origin,
            data=described.data,
            scores=described.scores,
            files=files,
        ),
    )


def _pipeline_folder(model: str) -> Path:
    folder = Path(model)
    if not folder.is_dir():
        from diffusers import DiffusionPipeline
        from huggingface_hub import snapshot_download

        folder = Path(
            load_foreign(lambda: DiffusionPipeline.download(model, use_safetensors=True), model, "model.model")
        )
        load_foreign(lambda: snapshot_download(model, allow_patterns=HUB_TERMS), model, "model.model")  # beside them
    if not (folder / INDEX).is_file():
        raise UserError(
            f"model.model = {model}: no {INDEX}, so that there is no pipeline to export; use --format lora "
            "where a LoRA was trained, or safetensors"
        )
    return folder


def _components(source: Path) -> dict[str, str]:
    """The folders of a pipeline that its index names, each with its class. UserError where that cannot be read."""
    try:
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        named = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{source / INDEX}: cannot be read ({error}); copy it anew where it comes from") from None
    folders = {path.name for path in source.iterdir() if path.is_dir()}
    return {name: str(kind) for name, kind in named.items() if kind is not None and name in folders}


def _needed(source: Path, components: set[str]) -> list[Path]:
    """What a pipeline reads of these components, and the terms it comes under: no checkpoint that only lies beside."""
    beside = [path for path in source.iterdir() if path.name == INDEX or TERMS.fullmatch(path.name)]
    within = [path for name in components for path in (source / name).rglob("*")]
    files = [path for path in (*beside, *within) if path.is_file() and path.suffix not in PICKLES]
    return sorted(path for path in files if not any(p.startswith(".") for p in path.relative_to(source).parts))


def _save_network(network: Any, folder: Path) -> None:
    network.save_pretrained(folder, safe_serialization=True)
    config = folder / NETWORK_CONFIG
    config.write_text(without_place(config.read_text(encoding="utf-8")), encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(config.stat().st_mode)  # safetensors leaves its files to their owner alone


def _part(folder: Path, kind: str, network: Any | None) -> tuple[str, str, int | None, int, str]:
    """Of one component what the card's table says."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if network is None:
        return folder.name, kind, None, size, "as in the base"
    return folder.name, kind, sum(parameter.numel() for parameter in network.parameters()), size, "trained here"


def _terms(card: Path) -> dict[str, Any]:
    """What the base's own card says of its licence and origin; nothing where there is none, or it says it strangely."""
    try:
        with card.open(encoding="utf-8") as file:
            front = FRONT.match(file.read(MAX_YAML_BYTES))
        values = parse_yaml(front[1], str(card)) if front else None
    except (OSError, UnicodeDecodeError, UsageError):
        return {}
    return {key: values[key] for key in KEPT if isinstance(values.get(key), str)} if isinstance(values, dict) else {}
