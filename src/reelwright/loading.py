"""MODEL, as every command takes it -> a Bundle with its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reelwright.bundle import DenoisingLoss, build_bundle
from reelwright.recipe import Recipe
from reelwright.run import RunDirectory
from reelwright.training import checkpoint as checkpoints
from reelwright.types import Bundle, UsageError, UserError


@dataclass(frozen=True)
class LoadedModel:
    """A Bundle with its weights and where they come from."""

    bundle: Bundle
    recipe: Recipe
    origin: str
    step: int | None  # None: random weights
    weights_sha256: str
    seconds: float = 0.0  # of training
    warnings: tuple[str, ...] = ()


def load_model(model: str, checkpoint: str | None = None, raw: bool = False) -> LoadedModel:
    """MODEL as the command line takes it: a run directory, one of its checkpoints, or a recipe.

    A run means its averaged weights (`raw`: the last weights instead) at the best checkpoint if one is tracked, else
    at the newest valid one. `checkpoint` names another: a step number or a checkpoint's name.
    """
    path = Path(model)
    is_run = (path / "recipe.yaml").is_file() and not (path / checkpoints.MANIFEST).is_file()
    if checkpoint is not None and path.exists() and not is_run:
        raise UsageError(f"--checkpoint {checkpoint}: '{model}' is not a run directory, so it has no choice of them")
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _load_recipe(path)
    if (path / checkpoints.MANIFEST).is_file():
        return _load_checkpoint(path, raw, ())
    if is_run:
        chosen, warnings = _choose_checkpoint(path, checkpoint)
        return _load_checkpoint(chosen, raw, warnings)
    raise UsageError(
        f"'{model}': not a model; give a run directory (it holds recipe.yaml and checkpoints/), "
        "one of its checkpoints, or a recipe (*.yaml, for random weights)"
    )


def _choose_checkpoint(run_path: Path, name: str | None) -> tuple[Path, tuple[str, ...]]:
    folder = RunDirectory(run_path).checkpoints
    present = sorted(p.name for p in folder.glob("step-*"))
    if name is not None:
        wanted = checkpoints.name_of(int(name)) if name.isdigit() else name
        if wanted not in present:
            raise UsageError(f"--checkpoint {name}: not in {folder}; there are: {', '.join(present) or 'none'}")
        return folder / wanted, ()
    passed_over: list[str] = []
    newest = checkpoints.newest_valid(folder, passed_over.append)
    if newest is None:
        reasons = "; ".join(passed_over) or "none has been saved yet"
        raise UsageError(f"{run_path}: no usable checkpoint ({reasons}); train it with: reelwright train RECIPE")
    best = checkpoints.load_checkpoint(newest, stems=()).state.best_step
    if best is not None:
        try:
            checkpoints.verify_checkpoint(folder / checkpoints.name_of(best))
        except checkpoints.DamagedCheckpoint as damage:
            passed_over.append(f"the best checkpoint is damaged, {newest.name} is used instead: {damage}")
        else:
            return folder / checkpoints.name_of(best), tuple(passed_over)
    return newest, tuple(passed_over)


def _load_checkpoint(path: Path, raw: bool, warnings: tuple[str, ...]) -> LoadedModel:
    stem = "model" if raw or not (path / "ema.safetensors").exists() else "ema"
    loaded = checkpoints.load_checkpoint(path, stems=(stem, "codec"))
    recipe = Recipe.load(path / "recipe.yaml")
    tokenizer_path = path / "tokenizer.json"
    tokenizer = tokenizer_path.read_text(encoding="utf-8") if tokenizer_path.exists() else None
    if recipe.text.type == "native" and tokenizer is None:
        raise UserError(f"{tokenizer_path}: missing, and the text encoder cannot be used without it")
    try:
        bundle = build_bundle(recipe, loaded.tensors.get("codec", {}), tokenizer)
    except RuntimeError as error:
        raise UserError(f"{path / 'codec.safetensors'} does not fit its recipe: {error}") from None
    result = DenoisingLoss(bundle).load_state_dict(loaded.tensors[stem], strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise UsageError(
            f"{path / stem}.safetensors does not fit its recipe: missing {result.missing_keys[:3]}, "
            f"unexpected {result.unexpected_keys[:3]}"
        )
    sha256 = loaded.manifest["files"][f"{stem}.safetensors"]["sha256"]
    return LoadedModel(bundle, recipe, str(path), loaded.state.step, sha256, loaded.state.seconds, warnings)


def _load_recipe(path: Path) -> LoadedModel:
    recipe = Recipe.load(path)
    bundle = build_bundle(recipe)
    warning = f"{path} is a recipe, not a trained model: its weights are random and so are its videos"
    return LoadedModel(bundle, recipe, str(path), None, "random", warnings=(warning,))
