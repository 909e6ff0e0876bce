"""What a page may ask for: strict models with limits. Path-like fields are names relative to the workspace."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from reelwright.config import Config

MAX_PROMPT_CHARACTERS = 4000
MAX_VIDEO_NUMBERS = 2**28  # frames x height x width of one video
MAX_EVALUATED = 4096  # videos a split

Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Checkpoint = Annotated[str | None, Field(pattern=r"^((step-)?\d{1,12}|newest)$")]
SamplerName = Literal["ddpm", "ddim", "euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"]


class _VideoRequest(Config):
    """What the jobs of the video lane share."""

    model: Name
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    offload: Literal["none", "model", "block"] = "none"
    checkpoint: Checkpoint = None  # of a run; None: the best one tracked, else the newest
    raw: bool = False


class _SampledRequest(_VideoRequest):
    """What generation and refinement share. None: as the model says."""

    prompt: Prompt
    negative_prompt: Prompt = ""
    sampler: SamplerName | None = None
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=0, le=100)


class GenerateRequest(_SampledRequest):
    """Videos of a prompt, seeds counting up from `seed`."""

    num_videos: int = Field(default=1, ge=1, le=16)
    frames: int | None = Field(default=None, ge=1, le=1024)
    width: int | None = Field(default=None, ge=1, le=4096)
    height: int | None = Field(default=None, ge=1, le=4096)
    fps: float | None = Field(default=None, ge=0.1, le=240)
    format: Literal["mp4", "gif", "webm"] = "mp4"

    @model_validator(mode="after")
    def _bounded(self) -> GenerateRequest:
        numbers = (self.frames or 1) * (self.width or 1) * (self.height or 1)
        if numbers > MAX_VIDEO_NUMBERS:
            raise ValueError(
                f"frames x height x width = {self.frames or 1} x {self.height or 1} x {self.width or 1}: over "
                f"{MAX_VIDEO_NUMBERS} pixels in all; ask for a shorter or smaller video"
            )
        return self


class RefineRequest(_SampledRequest):
    """A video of the workspace, noised to `strength` and denoised from there."""

    video: Name
    strength: float = Field(default=0.3, ge=0, le=1)
    already_noisy: bool = False


class NoiseRequest(_VideoRequest):
    """A video of the workspace as it looks after noise of `strength`."""

    video: Name
    strength: float = Field(default=0.3, ge=0, le=1)


class InspectRequest(Config):
    """A folder of clips under the default settings, but for those given, or a recipe's data."""

    data: Name
    frames: int | None = Field(default=None, ge=1, le=1024)
    fps: float | None = Field(default=None, gt=0, le=1000)
    width: int | None = Field(default=None, ge=1, le=4096)
    height: int | None = Field(default=None, ge=1, le=4096)


class _RecipeRequest(Config):
    recipe: Name
    changes: dict[str, Any] = Field(default_factory=dict, max_length=300)  # {"train.steps": 500}, see forms.changes


class PrepareRequest(_RecipeRequest):
    """Data -> cache."""

    verify: bool = False
    refit: bool = False


class TrainRequest(_RecipeRequest):
    """Recipe -> run directory; the same request again goes on."""

    fork: Name | None = None  # a new run directory that goes on from the recipe's run


class EvaluateRequest(Config):
    """Scores of a model, or of a folder of rendered clips."""

    model: Name
    metrics: str = Field(default="auto", pattern=r"^[a-z0-9_]+(,[a-z0-9_]+){0,19}$")
    prompts: int = Field(default=256, ge=2, le=MAX_EVALUATED)
    steps: int | None = Field(default=None, ge=1, le=1000)
    guidance: float | None = Field(default=None, ge=0, le=100)
    sampler: SamplerName | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    checkpoint: Checkpoint = None
    raw: bool = False


REQUESTS: dict[str, type[Config]] = {
    "generate": GenerateRequest,
    "refine": RefineRequest,
    "noise": NoiseRequest,
    "inspect": InspectRequest,
    "prepare": PrepareRequest,
    "train": TrainRequest,
    "evaluate": EvaluateRequest,
}
