"""A collection of captioned clips on disk, with the full state of every clip beside it.

OUT/videos/00000.mp4 ...    the clips
OUT/captions.json           {"00000.mp4": "a red circle moves left", ...}, lists of captions where there are several
OUT/scenes.json             the settings and every clip's scene, written first: it tells whose folder this is

The named clips (track d2) are OUT/videos/video_001.mp4 ... with OUT/metadata.json, {"video_001": "a green circle ..."}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reelwright.shapes.captions import caption
from reelwright.shapes.named import named_prompt
from reelwright.shapes.renderer import render
from reelwright.shapes.sampling import scene_generator
from reelwright.shapes.splits import training_scenes
from reelwright.shapes.tables import combinations
from reelwright.shapes.world import TRACKS, Factors, MovingObject, Prompt, Scene, find_track
from reelwright.types import Size, UsageError

SCENES_FILE = "scenes.json"
CAPTIONS_FILE = "captions.json"
METADATA_FILE = "metadata.json"  # of the named clips: captions by stem
VIDEOS_FOLDER = "videos"
MOST_WRITERS = 8  # threads that render and encode
_NEW_KEYS = ("change", "becomes", "change_at")  # left out where they are None: older collections have none


def training_prompts(
    n: int, seed: int, track: str = "s1", duration_seconds: float = 2.0, coverage: float | None = None
) -> list[Prompt]:
    """Training scenes with their captions. Prompt i depends on (track, seed, i) and the coverage alone."""
    found = find_track(track)
    if coverage is not None:
        combinations("covered", track, coverage)  # refuses one that does not fit
    if found.kind == "named":
        return [named_prompt("training", i, seed, duration_seconds) for i in range(n)]
    scenes = training_scenes(n, seed, track, duration_seconds, coverage)
    return [_training_caption(scene, track, seed, i) for i, scene in enumerate(scenes)]


def more_captions(prompts: list[Prompt], most: int, seed: int, track: str) -> list[list[str]]:
    """Of every training prompt its caption and others of the same scene, without repetition, `most` at most."""
    said: list[list[str]] = []
    for i, prompt in enumerate(prompts):
        others = (_training_caption(prompt.scene, track, seed, i, k).caption for k in range(1, most))
        said.append(list(dict.fromkeys([prompt.caption, *others])))
    return said


def _training_caption(scene: Scene, track: str, *key: int) -> Prompt:
    found = find_track(track)
    # graded words are there to be learned, so every caption says them
    states = found.headline if found.kind == "graded" else None
    return caption(scene, scene_generator("caption", track, *key), states=states)


def write_collection(
    out: Path,
    clips: int,
    seed: int,
    track: str,
    size: Size,
    fps: float,
    write_video: Callable[[Path, np.ndarray, float], None],
    progress: Callable[[int, int], None] | None = None,
    coverage: float | None = None,
    captions: int = 1,
) -> int:
    """Render a training collection into the folder `out`; returns how many clips had to be rendered.

    `coverage` trains on that share of all combinations instead of the usual ones; its tests are the last tenth.

    With `captions` above 1 a clip has up to so many, each of which may state other factors and leave others out.

    `write_video(path, frames uint8 f h w c, fps)` writes one file; `progress(done, total)` is called after each clip.
    The same call again renders what is missing and nothing else. UsageError if the folder holds anything else.
    """
    if clips < 1:
        raise UsageError(f"clips = {clips}: a collection has at least one clip")
    if track not in TRACKS:
        raise UsageError(f"track = '{track}' is not known; use one of {', '.join(TRACKS)}")
    if captions < 1:
        raise UsageError(f"captions = {captions}: a clip has at least one")
    if captions > 1 and find_track(track).kind == "named":
        raise UsageError(f"captions = {captions}: the clips of track {track} have one each; leave it out")
    if fps <= 0:
        raise UsageError(f"fps = {fps} must be positive")
    if size.frames < find_track(track).fewest_frames:
        raise UsageError(f"frames = {size.frames}: clips of track {track} need at least {TRACKS[track].fewest_frames}")
    settings = {"clips": clips, "seed": seed, "track": track, "size": list(size.tuple), "fps": float(fps)}
    settings |= {} if coverage is None else {"coverage": coverage}
    settings |= {} if captions == 1 else {"captions": captions}
    try:
        drawn = training_prompts(clips, seed, track, size.frames / fps, coverage)
    except ValueError as error:  # a coverage that does not fit
        raise UsageError(str(error)) from None
    prompts = dict(zip(_names(clips, track), drawn, strict=True))
    _claim(out, settings, prompts)

    videos = out / VIDEOS_FOLDER
    videos.mkdir(exist_ok=True)

    def write_missing(name: str) -> bool:
        if (videos / name).is_file():
            return False
        # A kill in mid-write must not leave half a clip under a clip's name.
        partial = videos / f".partial-{name}"
        write_video(partial, render(prompts[name].scene, size, fps), fps)
        partial.replace(videos / name)
        return True

    rendered = 0
    with ThreadPoolExecutor(min(MOST_WRITERS, os.cpu_count() or 1)) as writers:  # encoders let other threads work
        try:
            for done, missing in enumerate(writers.map(write_missing, prompts), start=1):
                rendered += missing
                if progress is not None:
                    progress(done, clips)
        except BaseException:
            writers.shutdown(cancel_futures=True)  # at Ctrl-C or a full disk: no clip more
            raise
    captions_path = out / captions_file(track)
    by_stem = captions_path.name == METADATA_FILE
    said: list[str] | list[list[str]] = [prompt.caption for prompt in drawn]
    if captions > 1:
        said = more_captions(drawn, captions, seed, track)
    keys = [Path(name).stem if by_stem else name for name in prompts]
    _write(captions_path, json.dumps(dict(zip(keys, said, strict=True)), indent=1))
    return rendered


def captions_file(track: str) -> str:
    """The name of the file that holds a collection's captions."""
    return METADATA_FILE if find_track(track).kind == "named" else CAPTIONS_FILE


def _names(clips: int, track: str) -> list[str]:
    if find_track(track).kind == "named":
        return [f"video_{i + 1:03}.mp4" for i in range(clips)]
    digits = max(5, len(str(clips - 1)))
    return [f"{i:0{digits}}.mp4" for i in range(clips)]


def read_track(path: Path) -> str:
    """The track a collection was drawn from, from its folder or its scenes.json."""
    return str(_read(path)["settings"]["track"])


def read_coverage(path: Path) -> float | None:
    """The share of all combinations a collection trains on; None where it was made without one."""
    return _read(path)["settings"].get("coverage")


def read_scenes(path: Path) -> dict[str, Prompt]:
    """Captions and scenes by file name, from a collection's folder or its scenes.json."""
    return {name: _prompt_from(entry) for name, entry in _read(path)["clips"].items()}


def _read(path: Path) -> dict[str, Any]:
    file = path / SCENES_FILE if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: not the scenes file of a shapes collection ({error})") from None
    if not isinstance(content, dict) or not {"settings", "clips"} <= content.keys():
        raise UsageError(f"{file}: not the scenes file of a shapes collection (it lacks 'settings' or 'clips')")
    return content


def _claim(out: Path, settings: dict[str, Any], prompts: dict[str, Prompt]) -> None:
    """Make the folder with its scenes file, or make sure that an existing one is this very collection."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, a collection is a folder; name another one")
    clips = {name: _plain(prompt) for name, prompt in prompts.items()}
    content = json.dumps({"settings": settings, "clips": clips}, indent=1)
    file = out / SCENES_FILE
    if file.exists():
        found = _read(file)
        if found == json.loads(content):
            return
        differing = [
            f"{key} {settings.get(key)!r} (there: {found['settings'].get(key)!r})"
            for key in {**settings, **found["settings"]}
            if found["settings"].get(key) != settings.get(key)
        ]
        what = ", ".join(differing) or "drawn by another version of the program"
        raise UsageError(f"{out}: holds another collection: {what}; name another folder or delete this one")
    if out.exists() and any(not entry.name.endswith(".partial") for entry in out.iterdir()):
        raise UsageError(f"{out}: holds files that are no shapes collection; name a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    _write(file, content)


def _write(file: Path, text: str) -> None:
    """Replace a file at once, and only if its text differs: an untouched file keeps its time."""
    if file.is_file() and file.read_text(encoding="utf-8") == text + "\n":
        return
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)


def _plain(prompt: Prompt) -> dict[str, Any]:
    """The prompt as JSON values."""

    def known(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in pairs if value is not None or name not in _NEW_KEYS}

    return asdict(prompt, dict_factory=known)


def _prompt_from(entry: dict[str, Any]) -> Prompt:
    scene = entry["scene"]
    objects = tuple(
        MovingObject(
            factors=Factors(**moving["factors"]),
            start=(moving["start"][0], moving["start"][1]),
            velocity=(moving["velocity"][0], moving["velocity"][1]),
            radius=moving["radius"],
            growth=moving["growth"],
            angle=moving["angle"],
            spin=moving["spin"],
            change_at=moving.get("change_at"),
        )
        for moving in scene["objects"]
    )
    stated = tuple(Factors(**factors) for factors in entry["stated"])
    return Prompt(entry["caption"], stated, Scene(objects, scene["background"], scene["duration_seconds"]))
