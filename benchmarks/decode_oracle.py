"""Are the frames we decode the ones the ffmpeg program decodes?

Every file is decoded whole, in a child process with a time limit of its own, and held against ffprobe's list of frames
and ffmpeg's `-pix_fmt rgb24` pictures: number of frames, size, first and last timestamp, lowest and mean PSNR over all
frames. A file that is refused is shown with its reason. What differs is explained in the last column, from what the
file holds or, for files known by name, by what was found out about them (`KNOWN`); what nothing explains fails.

    python benchmarks/decode_oracle.py FOLDER [FOLDER ...] --json table.json
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np

from reelwright.console import Progress, print_table
from reelwright.data.colours import colour_remark, has_transparency, to_rgb
from reelwright.data.decode import BadVideo, VideoInfo, decoded_frames, opened, orientation, probe, upright

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".ts", ".flv", ".3gp", ".wmv", ".mpg", ".jpeg", ".m4v"}
LEAST_PSNR = 40.0
EXACT_PSNR = 99.0  # stands for equal pictures, whose PSNR is infinite
SAME_TIME = 2e-6  # seconds; ffprobe prints microseconds
_NO_TIMES = "an AVI with B-frames holds no times to show frames at: ffprobe gives decoding times, PyAV derived ones"
KNOWN = {
    "vision__RATRACE_wave_f_nm_np1_fr_goo_37.avi": _NO_TIMES,
    "vision__TrumanShow_wave_f_nm_np1_fr_med_26.avi": _NO_TIMES,
}


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """dB of uint8 pictures."""
    error = np.subtract(a, b, dtype=np.int16).astype(np.int32)
    mean = float(np.square(error, out=error).mean(dtype=np.float64))
    return min(EXACT_PSNR, 10 * math.log10(255**2 / mean)) if mean else EXACT_PSNR


def ffprobe(path: Path, stream: str) -> dict[str, Any]:
    """Facts of the stream and of every frame the ffprobe program shows; no frames where it shows none."""
    entries = (
        "stream=width,height,sample_aspect_ratio,codec_name:stream_side_data=rotation:"
        "frame=best_effort_timestamp_time,width,height"
    )
    command = ["ffprobe", "-v", "error", "-select_streams", stream, "-show_entries", entries, "-of", "json", f"{path}"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    facts = json.loads(done.stdout or b"{}")
    return {"frames": facts.get("frames", []), "stream": (facts.get("streams") or [{}])[0]}


def shown_size(facts: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) as a player of ffprobe's facts shows the video."""
    stream, frames = facts["stream"], facts["frames"]
    if not frames:
        return None
    ratio = Fraction(stream.get("sample_aspect_ratio", "1:1").replace(":", "/") or 1)
    width, height = frames[0]["width"] * (ratio or 1), frames[0]["height"]
    turns = [side["rotation"] for side in stream.get("side_data_list", []) if "rotation" in side]
    if turns and turns[0] % 180 == 90:
        width, height = height, width
    return round(width), round(height)


class Theirs:
    """ffmpeg's pictures in order, with ffprobe's times."""

    def __init__(self, path: Path, stream: str, times: list[float | None], errors: IO[bytes]) -> None:
        command = ["ffmpeg", "-nostdin", "-v", "error", "-threads", "1", "-i", f"{path}", "-map", f"0:{stream}"]
        command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)
        self._times = times
        self._next = 0

    def picture(self, shape: tuple[int, ...], seconds: float | None) -> np.ndarray | None:
        """The picture of this time, passing over earlier ones we do not have; the next one where times tell nothing."""
        if seconds is not None and None not in self._times:
            later = [i for i, value in enumerate(self._times) if value is not None and abs(value - seconds) < 1e-4]
            later = [i for i in later if i >= self._next]
            while later and self._next < later[0]:
                self._read(shape)
        return self._read(shape)

    def _read(self, shape: tuple[int, ...]) -> np.ndarray | None:
        assert self._process.stdout is not None
        data = self._process.stdout.read(math.prod(shape))
        self._next += 1
        return np.frombuffer(data, dtype=np.uint8).reshape(shape) if len(data) == math.prod(shape) else None

    def close(self) -> None:
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()


def compare(path: Path) -> dict[str, Any]:
    """One row of the table."""
    try:
        info = probe(path)
    except BadVideo as bad:
        facts = ffprobe(path, "v:0")
        seen = len(facts["frames"])
        said = f"; ffmpeg shows {seen} frames and {complaints(path)} complaints" if seen else ""
        return {"ours": None, "theirs": seen, "refused": f"{bad}{said}"}
    with opened(path) as (_, stream):
        index = str(stream.index)
    facts = ffprobe(path, index)
    times = [float(t) if (t := frame.get("best_effort_timestamp_time")) else None for frame in facts["frames"]]
    known = [value for value in times if value is not None]
    levels, remarks = pictures(path, index, times)
    return {
        "ours": info.num_frames,
        "theirs": len(times),
        "skipped": info.skipped_frames,
        "codec": info.codec,
        "size": [info.width, info.height],
        "their_size": shown_size(facts),
        "first": [info.first_seconds, min(known, default=None)],
        "last": [float(info.timestamps[-1]), max(known, default=None)],
        "worst_time": worst_time(info, times),
        "psnr": [min(levels), float(np.mean(levels))] if levels else None,
        "compared": len(levels),
        "remarks": remarks if times else [f"this ffmpeg has no decoder for {info.codec}"],
    }


def complaints(path: Path) -> int:
    """Lines of damage ffmpeg reports of the first video stream."""
    command = ["ffmpeg", "-nostdin", "-v", "warning", "-i", f"{path}", "-map", "0:v:0", "-f", "null", "-"]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return len(done.stderr.splitlines())


def worst_time(info: VideoInfo, theirs: list[float | None]) -> float | None:
    """Largest difference of a timestamp, in seconds; None where the numbers of frames differ."""
    if len(theirs) != info.num_frames:
        return None
    pairs = zip(info.timestamps, sorted(theirs, key=lambda value: math.inf if value is None else value), strict=True)
    return max((abs(float(ours) - other) for ours, other in pairs if other is not None), default=None)


def pictures(path: Path, index: str, times: list[float | None]) -> tuple[list[float], list[str]]:
    """PSNR of every frame both have, and what of our rules makes them differ."""
    levels: list[float] = []
    remarks: dict[str, None] = {}
    with tempfile.TemporaryFile() as errors, opened(path) as (container, stream):
        theirs = Theirs(path, index, times, errors)
        try:
            for frame in decoded_frames(container, stream):
                if frame is None:
                    continue
                ours = upright(to_rgb(frame), *orientation(frame))
                other = theirs.picture(ours.shape, frame.time)
                if other is None:
                    break
                levels.append(psnr(ours, other))
                if levels[-1] < LEAST_PSNR:
                    reason = colour_remark(frame) or ("transparent" if has_transparency(frame) else None)
                    if reason:
                        remarks[reason] = None
        finally:
            theirs.close()
    return levels, list(remarks)


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its verdict (equal, deviates, refused, failed) and why."""
    known = KNOWN.get(row["file"], "")
    if "failed" in row:
        return {**row, "verdict": "failed", "why": row["failed"]}
    if "refused" in row:
        return {**row, "verdict": "refused", "why": f"{row['refused']}{'; ' + known if known else ''}"}
    faults = []
    if row["ours"] != row["theirs"]:
        faults.append(f"{row['ours']} frames for {row['theirs']}")
    if row["their_size"] is not None and list(row["size"]) != list(row["their_size"]):
        faults.append(f"size {row['size']} for {row['their_size']}")
    if row["worst_time"] is not None and row["worst_time"] > SAME_TIME:
        faults.append(f"timestamps differ by up to {row['worst_time']:.4f} s")
    if row["psnr"] is None or row["psnr"][0] < LEAST_PSNR:
        faults.append("no picture to compare" if row["psnr"] is None else f"PSNR {row['psnr'][0]:.1f} dB")
    if not faults:
        return {**row, "verdict": "equal", "why": known}
    why = known or "; ".join(row["remarks"])
    told = f"{', '.join(faults)}: {why or 'not explained'}"
    return {**row, "verdict": "deviates" if why else "unexplained", "why": told}


def measured(path: Path, seconds: float) -> dict[str, Any]:
    """`compare` in a child of its own, killed when it takes longer than `seconds`."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--one", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL)
        if done.returncode:
            row: dict[str, Any] = {"failed": f"exit {done.returncode}: {done.stderr.decode(errors='replace')[-300:]}"}
        else:
            row = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        row = {"failed": f"took longer than {seconds:g} s"}
    return judged({"file": path.name, **row, "seconds": round(time.perf_counter() - started, 2)})


def cells(row: dict[str, Any]) -> list[str]:
    def pair(name: str, form: str) -> str:
        values = row.get(name) or []
        texts = ["-" if value is None else format(value, form) for value in values]
        return texts[0] if len(set(texts)) == 1 else " / ".join(texts)

    frames = "/".join(str(row[name]) for name in ("ours", "theirs") if row.get(name) is not None)
    size = "x".join(map(str, row["size"])) if "size" in row else "-"
    levels = [f"{value:.1f}" for value in row["psnr"]] if row.get("psnr") else ["-", "-"]
    return [row["file"], row["verdict"], frames, size, pair("first", ".3f"), pair("last", ".3f"), *levels, row["why"]]


def listed(folders: list[Path]) -> list[Path]:
    files = [path for folder in folders for path in (sorted(folder.iterdir()) if folder.is_dir() else [folder])]
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=300.0, help="time limit of each file")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(compare(arguments.one)))
        return
    files = listed(arguments.paths)
    rows = []
    with Progress() as progress:
        for number, path in enumerate(files, start=1):
            rows.append(measured(path, arguments.seconds))
            progress("comparing", number, len(files), path.name)
    headers = ["file", "verdict", "frames ours/theirs", "size", "first s", "last s", "PSNR min", "mean", "why"]
    print_table(headers, [cells(row) for row in rows])
    counts = {name: sum(row["verdict"] == name for row in rows) for name in ("equal", "deviates", "refused")}
    wrong = [row for row in rows if row["verdict"] in ("failed", "unexplained")]
    print(", ".join(f"{count} {name}" for name, count in counts.items()) + f", {len(wrong)} failed or unexplained")
    if arguments.json:
        arguments.json.write_text(json.dumps({"counts": counts, "files": rows}, indent=1), encoding="utf-8")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
