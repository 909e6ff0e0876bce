"""An exported model on disk: its index, writing, and reading that trusts nothing.

    model_index.json                 class of each part, origin, data, scores, sizes and sha256 of the files
    recipe.yaml                      how it was trained, and how its parts are built
    denoiser/model.safetensors       text/model.safetensors       codec/model.safetensors
    text/tokenizer.json              of a text encoder that was trained with the denoiser
    unet/ or transformer/            of a pretrained family: its network as diffusers saves it. denoiser/ then holds
                                     what was put beside it, if anything
    README.md                        the card, for people: never read, so it may be edited

A fine-tuned pretrained family lies in diffusers' own layout instead, whose model_index.json is diffusers': beside it
are recipe.yaml, the card, and reelwright.json, which holds what our model_index.json would.

A part made elsewhere (CLIP, T5, AutoencoderKL) lies in its folder as its own library saves it. The same as one
safetensors file: every tensor is named after its part, and the index with the texts in it is the metadata. Nothing of
an index is looked up as code: it must say what the recipe says, and a recipe can only name the classes of its schema.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from reelwright.config import Config
from reelwright.durable import sha256_of, sync
from reelwright.models.foreign import LFS_HEADER, content_hash
from reelwright.types import UsageError, UserError

INDEX, RECIPE, CARD, TOKENIZER = "model_index.json", "recipe.yaml", "README.md", "text/tokenizer.json"
PIPELINE_INDEX = "reelwright.json"  # of a pipeline, where diffusers has INDEX
FORMAT_VERSION = 1
METADATA_KEY = "reelwright"  # of the one file, and its only one: several are written in a random order
MAX_INDEX_BYTES = 10_000_000
PARTS: tuple[str, ...] = ("denoiser", "text", "codec")
# What a part's folder may hold; an adapter_config.json, say, would make a library load what nobody listed.
PART_FILES = frozenset(
    ["model.safetensors", "diffusion_pytorch_model.safetensors", "config.json", "generation_config.json"]
    + ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
)
NETWORKS: tuple[str, ...] = ("unet", "transformer")  # a denoiser's part that diffusers knows; its prefix in there too
NETWORK_WEIGHTS, NETWORK_CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
FILES = frozenset(
    [RECIPE, CARD, *(f"{part}/{name}" for part in PARTS for name in PART_FILES)]
    + [f"{network}/{name}" for network in NETWORKS for name in (NETWORK_WEIGHTS, NETWORK_CONFIG)]
)
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip of torch.save, and bare ones


class FileEntry(Config):
    """Of a file; in the one-file form, of a text or of the named tensors of a part (`content_hash`)."""

    bytes: int = Field(ge=0)
    sha256: str


class Origin(Config):
    """Where weights come from."""

    step: int = Field(ge=0)
    weights: Literal["averaged", "last"]
    weights_sha256: str  # of the checkpoint's file: the name by which clips, scores and exports know these weights
    seconds: float = Field(ge=0)  # of training
    data_sha256: str = ""  # of the training samples
    versions: dict[str, str]  # that trained them
    base_sha256: str = ""  # of the weights beside which these were trained as adapters


class DataSummary(Config):
    """What a model was trained on, in numbers."""

    clips: int
    samples: int
    captions: int  # distinct ones
    held_out_clips: int
    sha256: str


class PipelineIndex(Config):
    """What stands in PIPELINE_INDEX beside `_class_name` and the seal."""

    class_name: ClassVar[str] = "ReelwrightPipeline"

    format_version: Literal[1]
    origin: Origin
    data: DataSummary | None = None
    scores: tuple[dict[str, Any], ...] = ()
    files: dict[str, FileEntry]


class ModelIndex(PipelineIndex):
    """The same of model_index.json, whose parts are this project's."""

    class_name: ClassVar[str] = "ReelwrightModel"

    denoiser: tuple[str, str]  # library and class, as diffusers writes them
    text: tuple[str, str]
    codec: tuple[str, str]
    texts: dict[str, str] = {}  # of the one-file form

    @field_validator("files", "texts")
    @classmethod
    def _check_names(cls, named: dict[str, Any]) -> dict[str, Any]:
        if strange := [name for name in named if name not in FILES]:
            raise ValueError(f"'{strange[0]}' is not the name of a file of an exported model")
        return named

    @field_validator("files")
    @classmethod
    def _check_complete(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if RECIPE not in files:
            raise ValueError(f"'{RECIPE}' is not among them")
        weights = ["denoiser/model.safetensors", *(f"{network}/{NETWORK_WEIGHTS}" for network in NETWORKS)]
        if not any(name in files for name in weights):
            raise ValueError(f"'{weights[0]}' is not among them")
        return files


AnyIndex = TypeVar("AnyIndex", bound=PipelineIndex)


@dataclass(frozen=True)
class Contents:
    """An exported model before it is a directory or a file; both by file name."""

    texts: dict[str, str]
    tensors: dict[str, dict[str, Tensor]]


def seal(content: Mapping[str, Any]) -> str:
    """sha256 over an index, which no other file vouches for."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def text_entry(text: str) -> FileEntry:
    data = text.encode()
    return FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def tensors_entry(tensors: Mapping[str, Tensor]) -> FileEntry:
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return FileEntry(bytes=size, sha256=content_hash({}, tensors))


def read_index(text: str, place: str) -> ModelIndex:
    """The index in a model_index.json or in a file's metadata; UserError where it is not ours, damaged or strange."""
    return _read_index(text, place, ModelIndex)


def read_pipeline_index(text: str, place: str) -> PipelineIndex:
    """The index in a PIPELINE_INDEX; errors as `read_index`."""
    return _read_index(text, place, PipelineIndex)


def _read_index(text: str, place: str, kind: type[AnyIndex]) -> AnyIndex:
    try:
        content = json.loads(text)
        name = content.pop("_class_name", None)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UserError(f"{place}: damaged or not an index ({error}); export the model again") from None
    if name != kind.class_name:
        raise UsageError(
            f"{place}: _class_name = {str(name)[:80]!r}, not '{kind.class_name}': it holds a model of another project; "
            "give a run of Reelwright or what `reelwright export` made, or for a published model a recipe that names "
            "it (model: {type: wan, model: FOLDER})"
        )
    if content.get("format_version") != FORMAT_VERSION:
        raise UsageError(
            f"{place}: format_version = {content.get('format_version')!r}; this Reelwright reads {FORMAT_VERSION}: "
            "use the version that wrote it, or export the model again"
        )
    if content.pop("sha256", None) != seal(content):
        raise UserError(f"{place}: it was changed after it was written; export the model again")
    return kind.parse(content, origin=place)


def write_directory(folder: Path, contents: Contents, index_of: Callable[[dict[str, FileEntry]], ModelIndex]) -> None:
    """Write and sync every file, the index last. OSError, SafetensorError."""
    for name, text in contents.texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for name, tensors in contents.tensors.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _save(tensors, folder / name, {"format": "pt"})
    write_index(folder, INDEX, index_of)


def write_index(folder: Path, place: str, index_of: Callable[[dict[str, FileEntry]], PipelineIndex]) -> None:
    """The index of all that is in `folder`, as its last file, and everything synced. OSError."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: FileEntry(bytes=(folder / name).stat().st_size, sha256=sha256_of(folder / name)) for name in names}
    (folder / place).write_text(index_text(index_of(files)) + "\n", encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def write_file(path: Path, contents: Contents, index_of: Callable[[dict[str, FileEntry]], ModelIndex]) -> None:
    """The same as one safetensors file. OSError, SafetensorError."""
    files = {name: text_entry(text) for name, text in contents.texts.items()}
    files |= {name: tensors_entry(tensors) for name, tensors in contents.tensors.items()}
    everything = {
        f"{name.partition('/')[0]}.{key}": tensor
        for name, tensors in contents.tensors.items()
        for key, tensor in tensors.items()
    }
    index = index_of(files).model_copy(update={"texts": contents.texts})
    _save(everything, path, {METADATA_KEY: index_text(index)})
    sync(path)


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """safetensors leaves its files readable by their owner alone; an export is to be shared like any other file."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    path.chmod(mode)


def without_place(text: str) -> str:
    """A library's JSON without where it was loaded from: that is nobody's business, and differs by machine."""
    content = json.loads(text)
    if any(content.pop(key, None) is not None for key in ("_name_or_path", "name_or_path")):
        return json.dumps(content, indent=2)
    return text


def index_text(index: PipelineIndex) -> str:
    """What `read_index` and `read_pipeline_index` read."""
    content = index.plain()
    if not content.get("texts"):
        content.pop("texts", None)
    return json.dumps({"_class_name": index.class_name, **content, "sha256": seal(content)}, indent=1, allow_nan=False)


def verify_files(path: Path, index: ModelIndex) -> None:
    """UserError names the first file that is missing, changed, a link to elsewhere, or not of the index."""
    root = path.resolve()
    for name, entry in index.files.items():
        file = path / name
        if name == CARD:
            continue
        if not file.resolve().is_relative_to(root):
            raise UserError(f"{file}: a link that leads out of {path}; copy the file itself there")
        if not file.is_file():
            raise UserError(f"{file}: missing; export the model again")
        size = file.stat().st_size
        if size != entry.bytes or sha256_of(file) != entry.sha256:
            raise UserError(
                f"{file}: damaged or changed: {size} bytes, {INDEX} says {entry.bytes} with sha256 "
                f"{entry.sha256[:12]}...; copy it anew or export the model again"
            )
    for part in (*PARTS, *NETWORKS):
        for file in sorted((path / part).glob("*")):
            if f"{part}/{file.name}" not in index.files and not file.name.startswith("."):
                raise UserError(f"{file}: not in {INDEX}; a library could read it unasked: move it elsewhere")


def weights_of(index: ModelIndex, part: str, root: Path) -> Path:
    names = [name for name in index.files if name.startswith(f"{part}/") and name.endswith(".safetensors")]
    if len(names) != 1:
        raise UserError(f"{root / part}: {len(names)} files of weights, where there must be one")
    return root / names[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; UserError where it is a pickle, a pointer or damaged."""
    check_weights(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy it anew") from None


def check_weights(path: Path) -> None:
    """UserError where a file is not safetensors, whatever it is named; its header is read, no tensor."""
    try:
        with path.open("rb") as stream:
            start = stream.read(len(LFS_HEADER))
        if start.startswith(_PICKLE_STARTS):
            raise UserError(f"{path}: a pickle under another name, which could run code when read; it was not read")
        if start == LFS_HEADER:
            raise UserError(f"{path}: a git-LFS pointer, not the weights; run 'git lfs pull' where it comes from")
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it anew") from None
