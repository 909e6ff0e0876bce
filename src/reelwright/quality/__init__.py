"""One set of videos, measured beside real ones: CLIP score, motion, Frechet distance; and how fast a model makes them.

The set is generated (or read) once and shared by every metric (`subjects`). No figure comes alone: each table holds the
rows that a broken video, a broken metric or chance would give (`measures`). Networks made elsewhere are loaded in one
way (`networks`).
"""

from reelwright.quality.measures import (
    Measured,
    measure_clip,
    measure_frechet,
    measure_nearest,
    measure_speed,
    measure_temporal,
)
from reelwright.quality.networks import build_features, load_clip
from reelwright.quality.places import Need, check_places, placed
from reelwright.quality.subjects import Progress, Subjects, VideoSet, folder_subjects, model_subjects, real_clips

__all__ = [
    "Measured",
    "Need",
    "Progress",
    "Subjects",
    "VideoSet",
    "build_features",
    "check_places",
    "folder_subjects",
    "load_clip",
    "measure_clip",
    "measure_frechet",
    "measure_nearest",
    "measure_speed",
    "measure_temporal",
    "model_subjects",
    "placed",
    "real_clips",
]
