"""Where a video cuts from one scene to the next: PySceneDetect's content detector, fed with frames decoded here.

Frames are ours so that a cut's time is a timestamp as windows use them, and so that hostile files are only read by the
limited child processes of `data.sandbox`.
"""

from __future__ import annotations

import importlib.util

import numpy as np

from reelwright.data.containers import opened
from reelwright.data.decode import VideoInfo, decoded_frames
from reelwright.types import UsageError, VideoFile

SCENES_VERSION = 1  # a change looks for all cuts anew
SIDE = 256  # pixels the longer side of a picture is brought to: cuts are large, and noise averages out


def check_extra() -> None:
    """UsageError where scenedetect, or OpenCV which it works with, is not installed. Imports neither."""
    if any(importlib.util.find_spec(name) is None for name in ("scenedetect", "cv2")):
        raise UsageError(
            "data.scene_cuts needs scenedetect and OpenCV: pip install 'reelwright[scenes]', "
            "or set data.scene_cuts to null"
        )


def find_cuts(video: VideoFile, info: VideoInfo, threshold: float) -> tuple[float, ...]:
    """Seconds after the first timestamp at which the first frame of a new scene is shown, ascending.

    A frame begins a scene where its mean change in hue, saturation and brightness (each 0 to 255) from the frame before
    reaches `threshold`. Every such frame counts: two cuts may follow each other closely, and a flash of light is two.
    `info` is what probing said of the file. BadVideo where it does not decode.
    """
    from scenedetect import ContentDetector, FrameTimecode

    detector = ContentDetector(threshold=threshold, min_scene_len=0)
    cuts: list[float] = []
    number, height, width = 0, 0, 0
    with opened(video) as (container, stream):
        for frame in decoded_frames(container, stream):
            if frame is None:
                continue
            if number == 0:  # of all frames: the size may change in mid-stream
                scale = min(1.0, SIDE / max(frame.width, frame.height))
                height, width = max(1, round(frame.height * scale)), max(1, round(frame.width * scale))
            small = frame.reformat(width, height, "bgr24", interpolation="AREA", threads=1)
            picture = np.ascontiguousarray(small.to_ndarray())
            if detector.process_frame(FrameTimecode(number, 25.0), picture) and 0 < number < info.num_frames:
                cuts.append(float(info.timestamps[number]) - info.first_seconds)
            number += 1
    return tuple(cuts)
