"""MODEL, as every command takes it -> a Bundle with its weights.

A model on disk is first read and verified (`stored`), then built (`built`); exporting needs only the first.
"""

from reelwright.loading.built import (
    LoadedModel,
    beginning,
    build_model,
    check_base,
    full_precision,
    load_model,
    lora_and_scale,
    merged,
    take_fits,
    with_loras,
)
from reelwright.loading.remembered import DeferredText
from reelwright.loading.stored import (
    BASE,
    NEWEST,
    StoredModel,
    base_of,
    class_of,
    is_frozen,
    local_recipe,
    open_model,
)

__all__ = [
    "BASE",
    "NEWEST",
    "DeferredText",
    "LoadedModel",
    "StoredModel",
    "base_of",
    "beginning",
    "build_model",
    "check_base",
    "class_of",
    "full_precision",
    "is_frozen",
    "load_model",
    "local_recipe",
    "lora_and_scale",
    "merged",
    "open_model",
    "take_fits",
    "with_loras",
]
