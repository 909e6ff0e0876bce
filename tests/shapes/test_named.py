from __future__ import annotations

import json

from reelwright.shapes.files import training_prompts
from reelwright.shapes.named import NAMED_CLIPS
from reelwright.shapes.splits import prompts


def test_the_three_come_in_turn_and_start_elsewhere_each_time():
    drawn = training_prompts(7, 0, "d2")
    assert [p.caption for p in drawn] == [NAMED_CLIPS[i % 3].caption for i in range(7)]
    assert len({p.scene for p in drawn}) == 7
    assert drawn == training_prompts(7, 0, "d2") != training_prompts(7, 1, "d2")
    assert not {p.scene for p in prompts("named", 30, 0, "d2")} & {p.scene for p in training_prompts(30, 0, "d2")}


def test_the_command_makes_them_by_name_and_the_checker_reads_their_files(run_cli, tmp_path):
    made = run_cli("shapes", tmp_path / "three", "--track", "d2")
    assert made.code == 0 and "3 clips" in made.out and "metadata.json" in made.out
    assert list(json.loads((tmp_path / "three" / "metadata.json").read_text())) == [
        "video_001", "video_002", "video_003"
    ]  # fmt: skip
    read = run_cli("evaluate", tmp_path / "three")
    assert read.code == 0 and "files  as rendered  100.0%" in read.out
    listed = run_cli("inspect", tmp_path / "three")
    assert listed.code == 0 and "3 used, 0 dropped" in listed.out


def test_mistakes_of_the_command_are_told_in_one_message(run_cli, tmp_path):
    for words, told in (
        (("--track", "s4"), "track = 's4' is not known; use one of s1, s1-hard, s2, s3, graded, d2"),
        (("--coverage", "0.95"), "coverage = 0.95"),
        (("--coverage", "0.5", "--track", "s2"), "tracks of one object"),
        (("--track", "s3", "--frames", "8"), "at least 12"),
    ):
        result = run_cli("shapes", tmp_path / "x", *words)
        assert result.code == 2 and told in result.err and not (tmp_path / "x").exists()
