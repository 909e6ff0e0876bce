"""Captioned-video listings: one module a format (`FORMATS`), every loss named.

    captions_json   {"a/video1.mp4": "caption" | ["caption", ...]}     names as files (an extensionless name works too)
    metadata_json   {"video_001": "caption" | [...]}                   names as stems
    txt             video.mp4 with video.txt beside it, or of the same relative name in the captions folder
    videofolder     metadata.jsonl | .csv | .parquet with file_name and text, caption or prompt
    table           .csv, .tsv, .jsonl, .parquet, name|||caption lists, JSON lists of objects
    msrvtt          videodatainfo JSON, also zipped, or [{"video", "caption": [...]}], and its split lists
    webdataset      .tar shards of key.mp4 with key.txt or key.json

A name is looked up as a path relative to the file that names it, then to the videos folder, then as a bare file name,
then as a stem; it has to mean one file. White space and control characters in captions become single spaces. Hidden
files (`.name`) are no clips: desktop systems litter them.
"""

from reelwright.data.sources.entries import Dropped
from reelwright.data.sources.listing import FORMATS, Listing, read_listing
from reelwright.data.sources.manifest import write_clip_manifest

__all__ = [
    "FORMATS",
    "Dropped",
    "Listing",
    "read_listing",
    "write_clip_manifest",
]
