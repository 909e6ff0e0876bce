"""The whole schema of a recipe: the component configurations joined under one roof."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import Field, NonNegativeInt, model_validator

from reelwright.config import Config
from reelwright.data.config import DataConfig
from reelwright.diffusion.objective import ObjectiveConfig
from reelwright.diffusion.sampler import SAMPLERS
from reelwright.models.autoencoder import AutoencoderConfig
from reelwright.models.codec import AutoencoderKLConfig, DCTCodecConfig, PCACodecConfig, PixelCodecConfig
from reelwright.models.content_motion import ContentMotionConfig
from reelwright.models.dit import DiTConfig
from reelwright.models.spatial import VideoTransformerConfig
from reelwright.models.text import CLIPTextConfig, NativeTextConfig, T5TextConfig
from reelwright.models.unet3d import UNet3DConfig
from reelwright.pretrained.autoencoders import VideoAutoencoderConfig
from reelwright.pretrained.base import FamilyConfig
from reelwright.pretrained.cogvideox import CogVideoXConfig
from reelwright.pretrained.hunyuan import HunyuanConfig, HunyuanTextConfig
from reelwright.pretrained.hunyuan15 import Hunyuan15Config, Hunyuan15TextConfig
from reelwright.pretrained.ltx import LTXConfig
from reelwright.pretrained.svd import CLIPImageConfig, SVDConfig
from reelwright.pretrained.wan import WanConfig
from reelwright.training.config import RESUMABLE_KEYS, TrainConfig
from reelwright.types import Size

ModelConfig = Annotated[
    DiTConfig
    | VideoTransformerConfig
    | UNet3DConfig
    | WanConfig
    | CogVideoXConfig
    | LTXConfig
    | HunyuanConfig
    | Hunyuan15Config
    | SVDConfig,
    Field(discriminator="type"),
]
TextConfig = Annotated[
    NativeTextConfig | CLIPTextConfig | T5TextConfig | HunyuanTextConfig | Hunyuan15TextConfig | CLIPImageConfig,
    Field(discriminator="type"),
]
CodecConfig = Annotated[
    PCACodecConfig
    | DCTCodecConfig
    | PixelCodecConfig
    | AutoencoderConfig
    | ContentMotionConfig
    | AutoencoderKLConfig
    | VideoAutoencoderConfig,
    Field(discriminator="type"),
]

FAMILIES: dict[str, type[FamilyConfig]] = {
    "wan": WanConfig,
    "cogvideox": CogVideoXConfig,
    "ltx": LTXConfig,
    "hunyuan": HunyuanConfig,
    "hunyuan15": Hunyuan15Config,
    "svd": SVDConfig,
}

# The type a group has where a recipe names none.
DEFAULT_TYPES = {"codec": "pca", "text": "native", "model": "dit"}


Spacing = Literal["even", "karras", "timesteps"]
SPACED_SCHEDULES = {"karras": "edm", "timesteps": "flow"}  # whose own they are


class SamplingConfig(Config):
    """How videos are made where the command line does not say."""

    sampler: str = "euler"  # one of diffusion.sampler.SAMPLERS
    steps: int = Field(default=30, ge=1)
    spacing: Spacing = "even"  # even in time, Karras' noise levels ('edm'), or by a flow's 1000 whole timesteps
    noise_levels: tuple[float, float] = (0.002, 700.0)  # lowest and highest sigma / alpha of 'karras'
    shift_terminal: float | None = Field(default=None, gt=0, lt=1)  # sigma that even steps of a flow end at; null: none
    guidance: float = Field(default=4.0, ge=0)  # 1: none
    guidance_end: float | None = Field(default=None, ge=0)  # of the last frame, where it is not that of the first
    guidance_low: float | None = Field(default=None, ge=0)  # of the expert for low noise, where it is not the other's
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # the t at which guidance acts
    window_frames: NonNegativeInt | Literal["auto"] = "auto"  # longer videos go in windows; auto: as trained; 0: none
    window_overlap: float = Field(default=0.5, ge=0, lt=1)  # share of a window that the next one covers too
    window_noise: Literal["fresh", "repeated"] = "fresh"  # repeated: all windows begin from the first one's, shuffled

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler = '{self.sampler}': not one of {', '.join(SAMPLERS)}")
        levels = type(self).model_fields["noise_levels"].default
        if self.spacing != "karras" and self.noise_levels != levels:
            raise ValueError(
                f"noise_levels = {list(self.noise_levels)} has no effect with spacing = '{self.spacing}': it belongs "
                f"to karras; leave it {list(levels)}"
            )
        if self.shift_terminal is not None and self.spacing != "even":
            raise ValueError(
                f"shift_terminal = {self.shift_terminal} has no effect with spacing = '{self.spacing}': it stretches "
                "even steps; leave it null"
            )
        if not 0 < self.noise_levels[0] < self.noise_levels[1]:
            raise ValueError(f"noise_levels = {list(self.noise_levels)}: must be [lowest, highest], above 0")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(f"guidance_interval = {[low, high]}: must be [low, high] with 0 <= low < high <= 1")
        return self


class Recipe(Config):
    """Everything a run depends on. `reelwright train RECIPE` needs nothing else."""

    run_dir: Path
    cache_dir: Path
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    codec: CodecConfig = PCACodecConfig()
    text: TextConfig = NativeTextConfig()
    model: ModelConfig = DiTConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="before")
    @classmethod
    def _name_types(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {key: value for key, value in values.items() if value is not None}  # `train:` with nothing below it
        _fill_in_companions(values)
        for group, default in DEFAULT_TYPES.items():
            inner = values.get(group)
            if isinstance(inner, dict) and "type" not in inner:
                values[group] = {"type": default, **inner}
        train = values.get("train")
        if isinstance(train, dict) and train.get("epochs") is not None and "steps" not in train:
            values["train"] = {**train, "steps": None}
        return values

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        spacing, schedule = self.sampling.spacing, self.objective.schedule
        if SPACED_SCHEDULES.get(spacing, schedule) != schedule:
            raise ValueError(
                f"sampling.spacing = {spacing!r} wants objective.schedule = {SPACED_SCHEDULES[spacing]!r}, not "
                f"{schedule!r}: these steps are its own; use sampling.spacing = even"
            )
        if self.sampling.shift_terminal is not None and self.objective.schedule != "flow":
            raise ValueError(
                f"sampling.shift_terminal = {self.sampling.shift_terminal} wants objective.schedule = 'flow', not "
                f"{self.objective.schedule!r}; leave it null"
            )
        started = self.train.start_from is not None or getattr(self.model, "model", None) is not None
        if self.train.lora is not None and not started:
            raise ValueError(
                "train.lora: needs a trained model to adapt, and this recipe makes one from scratch; name it in "
                "model.model or train.start_from, or leave train.lora out"
            )
        self._check_mixup()
        if getattr(self.model, "quantize", None) is not None and self.train.lora is None:
            raise ValueError(
                "model.quantize: 8-bit weights cannot be trained, only adapters beside them: set train.lora"
            )
        if self.sampling.guidance_low is not None and getattr(self.model, "expert", None) is None:
            raise ValueError(
                f"sampling.guidance_low = {self.sampling.guidance_low:g}: is for models of two experts (model.expert); "
                "leave it out"
            )
        if isinstance(self.model, FamilyConfig):
            self.model.check_parts(self.codec.type, self.text.type)
        grid = self.objective.build().schedule.grid
        if grid is not None and self.sampling.steps > grid:
            raise ValueError(
                f"sampling.steps = {self.sampling.steps}: the schedule has {grid} times "
                "(objective.schedule_steps); use at most that"
            )
        return self

    def _check_mixup(self) -> None:
        """ValueError where the model does not see captions, or has not the parts, that `train.mixup` mixes."""
        told, parts = f"train.mixup = {self.train.told_mixup}", getattr(self.model, "parts", None)
        if self.train.mixes and getattr(self.model, "text_tokens", None) != "pooled":
            raise ValueError(
                f"{told}: captions are mixed in the mean over their tokens, so only for a model that sees no more of "
                "them: model.type = dit with model.text_tokens = pooled; or train.mixup = 0"
            )
        if isinstance(self.train.mixup, tuple) and len(self.train.mixup) != len(parts or ()):
            has = f" = {list(parts)}; give as many" if parts else ", of which there are none; set it"
            raise ValueError(f"{told}: a list has a share for each of model.parts{has}, or give one for all channels")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What whoever trains this should know beforehand."""
        return self.model.warnings(self.objective) if isinstance(self.model, FamilyConfig) else ()

    @property
    def size(self) -> Size:
        """Size of the videos this recipe generates unless told otherwise."""
        return self.data.sizes[0]


# A run may be moved, its data cleaned up, and `sampling` only says how videos are shown.
MAY_CHANGE = frozenset(
    {*RESUMABLE_KEYS, "run_dir", "cache_dir", "data.max_dropped"}
    | {f"sampling.{name}" for name in SamplingConfig.model_fields}
)


def _fill_in_companions(values: dict[str, Any]) -> None:
    """A pretrained family's own codec, text, objective and sampling, as far as the recipe does not name others."""
    model = values.get("model")
    family = FAMILIES.get(model.get("type", "")) if isinstance(model, dict) else None
    if family is None or not isinstance(model, dict):
        return
    if not isinstance(model.get("model") or "", str) or not isinstance(model.get("subfolder", ""), str):
        return  # the recipe is refused for that
    family.check_place(model)
    try:
        size = DataConfig.model_validate(values.get("data")).sizes[0]
    except ValueError:
        return  # the recipe is refused for its data
    companions = family.companions(model, size)
    walk = companions.get("sampling", {})
    if walk.get("spacing") == "timesteps" and not _leaves_unipc_alone(values):
        walk["spacing"] = "even"
    for group, settings in companions.items():
        given = values.get(group, {})
        if isinstance(given, dict) and given.get("type", settings.get("type")) == settings.get("type"):
            values[group] = {**settings, **given}


def _leaves_unipc_alone(values: Mapping[str, Any]) -> bool:
    """Whether a recipe names no other way down a flow than UniPC's, to which whole timesteps belong."""
    objective, sampling = (values.get(group) for group in ("objective", "sampling"))
    schedule = objective.get("schedule", "flow") if isinstance(objective, dict) else "flow"
    own = sampling if isinstance(sampling, dict) else {}
    return schedule == "flow" and own.get("sampler", "unipc") == "unipc" and own.get("shift_terminal") is None


def add_model(config: type[Config]) -> None:
    """Let recipes name a model of your own: `config` has a `type` and a `build(channels, text_width)`.

    One of the same type, as a notebook's cell run twice makes it, takes the place of the earlier one.
    """
    field, name = Recipe.model_fields["model"], config.model_fields["type"].default
    others = [known for known in get_args(field.annotation) if known.model_fields["type"].default != name]
    union: Any = Union[(*others, config)]  # noqa: UP007 - made at run time
    field.annotation = union
    Recipe.model_rebuild(force=True)
