"""What `prepare` did, told to people and programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reelwright.data.dataset import Manifest
from reelwright.data.inspection import Inspection
from reelwright.data.sources import Dropped
from reelwright.prepare.encoding import Progress
from reelwright.recipe import Recipe


@dataclass
class Summary:
    """What `prepare` did, the work of all processes together. `encoded` counts latents, each once."""

    recipe: Recipe
    inspection: Inspection
    manifest: Manifest
    encoded: int = 0
    texts: int = 0
    fitted: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # what --verify found in the cache and took out

    def to_json(self) -> dict[str, Any]:
        latents = {key for sample in self.manifest.samples for key in sample.latent_keys}
        return {
            "cache_dir": str(self.recipe.cache_dir),
            "samples": self.manifest.counts(),
            "encoded": self.encoded,
            "reused": len(latents) - self.encoded,
            "texts_encoded": self.texts,
            "fitted": self.fitted,
            "damaged": self.damaged,
            "codec_psnr_db": self.manifest.about["codec_psnr_db"],
            "captions_cut": self.manifest.about["captions_cut"],
            "dropped": [{"id": d.id, "reason": d.reason} for d in self.manifest.dropped],
        }

    def lines(self) -> list[str]:
        facts = self.to_json()
        counts = facts["samples"]
        lines = [f"dropped {d['id']}: {d['reason']}" for d in facts["dropped"]]
        lines += [f"fitted on the data: {part}" for part in self.fitted]
        lines += [f"damaged in the cache, made anew where it is needed: {file}" for file in _files_of(self.damaged)]
        lines.append(
            f"{facts['cache_dir']}: {counts.get('train', 0)} training and "
            f"{counts.get('validation', 0)} held-out samples, "
            f"{counts['dropped']} clips dropped; {self.encoded} encoded now, {facts['reused']} were there; "
            f"{self.texts} captions encoded now"
        )
        if facts["captions_cut"]:
            length = getattr(self.recipe.text, "length", None)  # a picture has none, but then nothing is cut
            lines.append(
                f"{facts['captions_cut']} captions are longer than text.length = {length} tokens; "
                "their ends are not seen: raise text.length"
            )
        if facts["codec_psnr_db"] is not None:
            lines.append(f"codec round trip: {facts['codec_psnr_db']:.1f} dB PSNR (what the best model could reach)")
        return lines


def _files_of(damages: Sequence[str]) -> list[str]:
    """The files, each with how many of its items were damaged."""
    names = [damage.partition(": damaged")[0] for damage in damages]
    return [f"{name}, {names.count(name)} item{'s' * (names.count(name) > 1)}" for name in dict.fromkeys(names)]


def too_many_lost(inspection: Inspection, lost: Sequence[Dropped], recipe: Recipe) -> str:
    """The message where inspection and decoding together lose more than `data.max_dropped` allows."""
    dropped = [*lost, *inspection.dropped]
    reasons = "\n  ".join(f"{item.id}: {item.reason}" for item in dropped[:10])
    return (
        f"{len(dropped)} of {inspection.num_clips} clips are lost, {len(lost)} of them while they were decoded; "
        f"that is more than data.max_dropped = {recipe.data.max_dropped:g} allows:\n  {reasons}\n"
        "Mend or remove them, or raise data.max_dropped"
    )


def paced(show: Callable[[str, int, int, str], None], clock: Callable[[], float] = time.monotonic) -> Progress:
    """Progress that also says how fast a stage goes and how long it will take: `12.3/s, 1:20 left`."""
    begun: dict[str, tuple[float, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        started, first = begun.setdefault(stage, (clock(), done))
        seconds, number = clock() - started, done - first
        note = ""
        if number > 0 and seconds > 0:
            rate = number / seconds
            left = round(max(0, total - done) / rate)
            hours, minutes = divmod(left // 60, 60)
            note = f"{rate:.3g}/s, " + (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{left % 60:02} left"
        show(stage, done, total, note)

    return progress
