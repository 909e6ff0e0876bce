"""The train/validation split: by source video, so that nothing seen in training is held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reelwright.data.duplicates import groups, near_duplicates
from reelwright.data.probing import Seen
from reelwright.data.sources import Dropped
from reelwright.randomness import derive_seed

MIN_SOURCES_FOR_VALIDATION = 8  # from here on a validation fraction above 0 holds out at least one source


def held_out_sources(sources: Iterable[str], fraction: float) -> set[str]:
    """The sources of the validation split: those whose name hashes below `fraction` of the hashes' range.

    So a source stays on its side whatever other sources come or go, and no clip once trained on is ever held out
    later. Two edges bend that rule: from 8 sources on the smallest hash is held out where none would be, and the
    largest is trained on where all would be held out.
    """
    ranked = sorted((_place(source), source) for source in set(sources))
    held_out = [source for number, source in ranked if number < fraction * 2**63]
    if fraction > 0 and not held_out and len(ranked) >= MIN_SOURCES_FOR_VALIDATION:
        held_out = [ranked[0][1]]
    return set(held_out[: max(0, len(ranked) - 1)])


def _place(source: str) -> int:
    """Where a source lies in the hashes' range, 0 to 2^63: the lower, the sooner it is held out."""
    return derive_seed("validation split", source)


def true_sources(clips: Sequence[Seen], by_looks: bool = True) -> tuple[list[str], list[Dropped]]:
    """(source of each clip, notes): clips of one file, or that look the same (`by_looks`), belong to one source.

    So do the sources they come from. The name whose hash is largest stands for all: clips added to a group can only
    move it from held out to trained on, never back.
    """
    links: list[tuple[int, int]] = []
    notes: dict[int, str] = {}
    first_of: dict[tuple[str, str], int] = {}
    for number, seen in enumerate(clips):
        for key in (("source", seen.clip.source), ("file", seen.sha256)):
            links.append((first_of.setdefault(key, number), number))
        same = clips[first_of["file", seen.sha256]].clip
        if same.video != seen.clip.video:
            notes[number] = f"the same file as {same.id}"
    for first, number in near_duplicates([seen.info.looks for seen in clips]) if by_looks else ():
        links.append((first, number))
        if clips[first].sha256 != clips[number].sha256 and number not in notes:
            differing = clips[first].info.looks.distance(clips[number].info.looks)
            notes[number] = f"looks the same as {clips[first].clip.id} ({differing} of 64 bits differ)"
    members: dict[int, list[str]] = {}
    which = groups(len(clips), links)
    for number, group in enumerate(which):
        members.setdefault(group, []).append(clips[number].clip.source)
    names = {group: max(sources, key=lambda source: (_place(source), source)) for group, sources in members.items()}
    told = [Dropped(clips[n].clip.id, f"{note}; they stay on one side of the split") for n, note in notes.items()]
    return [names[group] for group in which], told
