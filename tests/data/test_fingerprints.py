"""Keys change with what they stand for; file hashes are remembered, and only as long as the file is the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from reelwright.data import fingerprints
from reelwright.data.fingerprints import FileFacts, FileHashes, Journal, latent_key, text_key
from reelwright.durable import sha256_of
from reelwright.types import Size, UserError


def test_every_part_of_a_latents_key_counts() -> None:
    parts = ["ab" * 32, 0.0, Size(16, 64, 64), 8.0, "codec", "float32", None, ""]
    others = ["cd" * 32, 0.125, Size(8, 64, 64), 7.5, "other", "bfloat16", 2.0, "flip"]
    keys = {latent_key(*parts)}  # type: ignore[arg-type]
    for k, other in enumerate(others):
        keys.add(latent_key(*parts[:k], other, *parts[k + 1 :]))  # type: ignore[arg-type]
    assert len(keys) == 9
    assert latent_key(*parts) == latent_key(*parts[:6])  # type: ignore[arg-type]
    assert latent_key(*parts) in keys  # type: ignore[arg-type]


def test_text_keys_depend_on_caption_and_encoder_alone() -> None:
    assert (
        len({text_key("a", "e"), text_key("b", "e"), text_key("a", "f"), text_key("", "e"), text_key("a,e", "")}) == 5
    )


def test_schema_and_rules_are_part_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("ab" * 32, 0.0, Size(16, 64, 64), 8.0, "codec", "float32")
    keys = {latent_key(*arguments)}
    for name, value in (("SCHEMA", -1), ("RESIZE_RULE", "other"), ("PROBE_VERSION", "other")):
        monkeypatch.setattr(fingerprints, name, value)
        keys.add(latent_key(*arguments))
    assert len(keys) == 4


class _Counting:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(fingerprints, "sha256_of", self)

    def __call__(self, path: Path) -> str:
        self.count += 1
        return sha256_of(path)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> _Counting:
    return _Counting(monkeypatch)


def _settled(path: Path, data: bytes) -> Path:
    """A file that was written long enough ago for its time stamps to be trusted."""
    path.write_bytes(data)
    time.sleep(0.12)
    return path


def test_an_unchanged_file_is_read_once_even_by_the_next_process(tmp_path: Path, reads: _Counting) -> None:
    path = _settled(tmp_path / "a.mp4", b"one")
    hashes = FileHashes(Journal(tmp_path / "files.jsonl"))
    sha256 = hashes.sha256(path)
    assert sha256 == hashes.sha256(path) == FileHashes(Journal(tmp_path / "files.jsonl")).sha256(path)
    assert reads.count == 1
    assert hashes.sha256(path, verify=True) == sha256
    assert reads.count == 2


def test_other_bytes_with_the_old_mtime_are_seen(tmp_path: Path, reads: _Counting) -> None:
    path = _settled(tmp_path / "a.mp4", b"one")
    hashes = FileHashes(Journal(tmp_path / "files.jsonl"))
    before, stat = hashes.sha256(path), path.stat()
    path.write_bytes(b"two")  # the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert hashes.sha256(path) != before
    assert reads.count == 2


def test_a_new_mtime_alone_gives_the_same_hash(tmp_path: Path, reads: _Counting) -> None:
    path = _settled(tmp_path / "a.mp4", b"one")
    hashes = FileHashes(Journal(tmp_path / "files.jsonl"))
    before = hashes.sha256(path)
    os.utime(path)
    assert hashes.sha256(path) == before
    assert reads.count == 2


def test_a_file_written_this_instant_is_not_trusted_yet(tmp_path: Path, reads: _Counting) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    hashes = FileHashes(Journal(tmp_path / "files.jsonl"))
    hashes.sha256(path)
    hashes.sha256(path)
    assert reads.count == 2


def test_a_file_that_takes_long_to_read_is_not_trusted_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change while it is read, under the time stamps it had when reading began."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    hashes, slow = FileHashes(Journal(tmp_path / "files.jsonl")), _Counting(monkeypatch)
    monkeypatch.setattr(fingerprints, "sha256_of", lambda path: (slow(path), time.sleep(0.12))[0])
    first = hashes.sha256(path)
    assert hashes.sha256(path) == first and slow.count == 2, "the first reading is not trusted"
    assert hashes.sha256(path) == first and slow.count == 2, "the second is"


def test_a_journal_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "files.jsonl").mkdir()
    with pytest.raises(UserError, match=r"files.jsonl: cannot be read \(Is a directory\)"):
        Journal(tmp_path / "files.jsonl")


def test_a_journal_survives_half_lines_and_flipped_bits(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    journal = Journal(path)
    for number in range(20):
        journal.put(f"k{number}", {"value": number})
    journal.put("k3", {"value": "newer"})
    whole = path.read_bytes()
    expected = {f"k{number}": {"value": number} for number in range(20)} | {"k3": {"value": "newer"}}
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        again.put("after", cut)
        again = Journal(path)
        assert again.get("after") == cut
        for key, value in expected.items():
            assert again.get(key) in (None, value, {"value": 3})
    path.write_bytes(whole)
    assert {key: Journal(path).get(key) for key in expected} == expected
    for at in range(0, len(whole), 11):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(bytes(damaged))
        again = Journal(path)
        assert all(again.get(key) in (None, value, {"value": 3}) for key, value in expected.items())


def test_what_was_computed_from_files_is_known_until_one_of_them_changes(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "b")]
    for path in files:
        path.write_text(path.name)
        os.utime(path)
    time.sleep(0.2)  # what changed a moment ago is not taken for settled
    computed: list[str] = []

    def compute() -> str:
        computed.append("".join(path.read_text() for path in files))
        return computed[-1]

    def known(name: str = "x", of: list[Path] = files) -> str:
        return FileFacts(Journal(tmp_path / "journal.jsonl")).get(name, of, compute)

    assert [known(), known(), known()] == ["ab"] * 3 and computed == ["ab"]
    assert known("y") == "ab" and len(computed) == 2, "another name is another fact"
    files[1].write_text("c")
    assert known() == "ac" and len(computed) == 3
    time.sleep(0.2)
    assert [known(), known()] == ["ac"] * 2 and len(computed) == 4, "settled by now"
    assert known(of=files[:1]) == "ac" and len(computed) == 5, "fewer files are others"
    assert [known(of=[]), known(of=[])] == ["ac"] * 2 and len(computed) == 7, "of no file nothing is known"
    assert known(of=[tmp_path / "gone"]) == "ac" and len(computed) == 8
    time.sleep(0.2)
    known()
    FileFacts(Journal(tmp_path / "journal.jsonl")).forget("x")
    assert known() == "ac" and len(computed) == 10
