"""Which latents a sample has: that of its plain window and those of its augmented variants."""

from __future__ import annotations

from reelwright.data.augmentation import Facts, Window, plan_variant
from reelwright.data.config import DataConfig
from reelwright.data.fingerprints import latent_key
from reelwright.data.inspection import Inspection, Sample
from reelwright.data.windows import Piece


def pieces_of(inspection: Inspection, sample: Sample, config: DataConfig, codec_fingerprint: str) -> tuple[Piece, ...]:
    """One piece for each of `data.variants`, the plain one first. Held-out samples have no other."""
    info = inspection.info(sample)
    window = Window(sample.size, config.fps, sample.start_seconds, sample.end_seconds)
    last = float(info.timestamps[-1]) - info.first_seconds
    facts = Facts(
        sha256=sample.sha256,
        captions=sample.clip.captions,
        window=window,
        earliest_seconds=sample.span[0],
        latest_seconds=min(last, sample.span[1]),
        width=info.width,
        height=info.height,
    )
    variants = config.variants if sample.split == "train" else 1
    plans = [plan_variant(config.augment, facts, variant) for variant in range(variants)]
    return tuple(
        Piece(
            sample,
            latent_key(
                sample.sha256, sample.start_seconds, sample.size, config.fps, codec_fingerprint, config.cache_dtype,
                sample.end_seconds, plan.key,
            ),
            plan,
        )
        for plan in plans
    )  # fmt: skip
