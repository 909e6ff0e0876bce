"""The cache is whole after a kill at any instant and never gives bytes that were not put into it."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reelwright.data import cache as cache_module
from reelwright.data.cache import Cache, CacheDamaged, read_json, write_json
from reelwright.types import UserError


class Killed(BaseException):
    """Stands for the end of the process: nothing in the code may catch it."""


def _key(number: int) -> str:
    return f"{number:040x}"


def _item(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "mean": torch.randn(2, 3, 4, 4, generator=generator),
        "logvar": torch.randn(2, 3, 4, 4, generator=generator).to(torch.bfloat16),
    }


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def _filled(root: Path, count: int = 6, pack: bool = True) -> Cache:
    cache = Cache(root)
    for number in range(count):
        cache.put(_key(number), "latent-2x4x4" if number % 2 else "text", _item(number))
    if pack:
        cache.pack()
    return cache


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_put_comes_back_bit_for_bit(tmp_path: Path, packed: bool) -> None:
    for cache in (_filled(tmp_path, pack=packed), Cache(tmp_path)):
        assert cache.keys() == {_key(number) for number in range(6)}
        for number in range(6):
            assert cache.has(_key(number))
            assert _same(cache.get(_key(number)), _item(number))
    assert len(list((tmp_path / "pending").iterdir())) == (0 if packed else 6)
    with pytest.raises(KeyError, match="not in the cache"):
        cache.get(_key(99))


def test_types_and_shapes_survive(tmp_path: Path) -> None:
    item = {
        "tokens": torch.arange(5, dtype=torch.int32),
        "half": torch.ones(3, dtype=torch.float16),
        "scalar": torch.tensor(2.5),
        "strided": torch.arange(12.0).reshape(3, 4).T,
        "empty": torch.zeros(0, 7),
    }
    cache = Cache(tmp_path)
    cache.put(_key(1), "text", item)
    assert _same(cache.get(_key(1)), item)
    cache.pack()
    assert _same(Cache(tmp_path).get(_key(1)), item)


def test_non_finite_values_never_reach_the_disk(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for value in (float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValueError, match="mean holds NaN or infinity"):
            cache.put(_key(1), "latent", {"mean": torch.tensor([1.0, value])})
    large = torch.full((100,), 60_000.0, dtype=torch.float16)  # finite, although their sum is not in half precision
    cache.put(_key(2), "latent", {"mean": large, "sum": torch.full((4,), 3e38)})
    with pytest.raises(ValueError, match="hexadecimal key"):
        cache.put("../x", "latent", {"mean": torch.ones(1)})
    with pytest.raises(ValueError, match="plain kind"):
        cache.put(_key(1), "../latent", {"mean": torch.ones(1)})
    assert cache.keys() == {_key(2)}


def test_many_items_are_packed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "PACK_ITEMS", 4)
    cache = _filled(tmp_path, 10, pack=False)
    assert len(list((tmp_path / "pending").iterdir())) == 2
    assert all(_same(cache.get(_key(number)), _item(number)) for number in range(10))


def test_equal_content_gives_equal_shards(tmp_path: Path) -> None:
    _filled(tmp_path / "a")
    _filled(tmp_path / "b")
    for left in (tmp_path / "a/shards").iterdir():
        assert left.read_bytes() == (tmp_path / "b/shards" / left.name).read_bytes()


def _kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> None:
    """Stop everything at the given moment; each change of the disk has one before it and one after it."""
    moments = iter(range(10_000))

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def change(*args: Any, **kwargs: Any) -> Any:
            if next(moments) == moment:
                raise Killed
            result = original(*args, **kwargs)
            if next(moments) == moment:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, change)

    for owner, name in ((Path, "open"), (os, "fsync"), (Path, "replace"), (Path, "unlink")):
        wrap(owner, name)


def test_a_kill_at_every_step_loses_nothing_that_was_put(tmp_path: Path) -> None:
    """Puts and a pack, cut off at the n-th moment for every n; then the same again on what is left."""
    survived = False
    for at in range(300):
        root, put = tmp_path / str(at), []
        with pytest.MonkeyPatch.context() as patch:
            _kill_at(patch, at)
            try:
                cache = Cache(root)
                for number in range(4):
                    cache.put(_key(number), "latent", _item(number))
                    put.append(number)
                cache.pack()
                survived = True
            except Killed:
                pass
        again = Cache(root)
        for number in put:
            assert _same(again.get(_key(number)), _item(number)), (at, number)
        for number in range(4):
            if not again.has(_key(number)):
                again.put(_key(number), "latent", _item(number))
        again.pack()
        final = Cache(root)
        assert not final.verify()
        assert all(_same(final.get(_key(number)), _item(number)) for number in range(4))
        assert not list((root / "pending").glob("*.safetensors"))
        assert len(list((root / "shards").glob("*.json"))) == len(list((root / "shards").glob("*.safetensors")))
        if survived:
            break
    assert survived
    assert at > 40


def test_abandoned_temporary_files_go(tmp_path: Path) -> None:
    cache = _filled(tmp_path)
    old, young = tmp_path / "pending/.x.1-1.tmp", tmp_path / "pending/.y.1-1.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.pack()
    assert (old.exists(), young.exists()) == (False, True)


def _child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def test_kill_9_and_two_writers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes fill one cache with overlapping items and are killed; the next ones go on where they were."""
    monkeypatch.setattr(cache_module, "PACK_ITEMS", 5)

    def fill(first: int, last: int) -> Callable[[], None]:
        def work() -> None:
            cache = Cache(tmp_path)
            for number in range(first, last):
                if not cache.has(_key(number)):
                    cache.put(_key(number), "latent", _item(number))
            cache.pack()

        return work

    for seconds in (0.03, 0.08, 0.15, None):
        children = [_child(fill(0, 60)), _child(fill(30, 90))]
        if seconds is not None:
            time.sleep(seconds)
        for child in children:
            if seconds is not None:
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        cache = Cache(tmp_path)
        assert not cache.verify()
        assert all(_same(cache.get(key), _item(int(key, 16))) for key in cache.keys())  # noqa: SIM118
    assert Cache(tmp_path).keys() == {_key(number) for number in range(90)}
    assert not list((tmp_path / "pending").glob("*.safetensors"))


def test_only_one_process_packs_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = _filled(tmp_path, pack=False)
    with (tmp_path / "lock").open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("12345")
        other.flush()
        monkeypatch.setattr(cache_module, "_LOCK_SECONDS", 0.1)
        with pytest.raises(UserError, match="held for minutes by process 12345; stop it"):
            cache.pack()
        assert len(list((tmp_path / "pending").iterdir())) == 6
    cache.pack()  # its holder is gone: nothing to clean up
    assert not list((tmp_path / "pending").iterdir())


def test_a_reader_follows_an_item_that_another_process_packed(tmp_path: Path) -> None:
    writer = _filled(tmp_path, pack=False)
    reader = Cache(tmp_path)
    writer.pack()
    assert all(_same(reader.get(_key(number)), _item(number)) for number in range(6))


def test_every_flipped_bit_is_found_and_never_used(tmp_path: Path) -> None:
    _filled(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for path in sorted((tmp_path / "shards").iterdir()):
        whole = path.read_bytes()
        for _ in range(150):
            bit = int(torch.randint(len(whole) * 8, (), generator=generator))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bytes(damaged))
            found = 0
            try:
                cache = Cache(tmp_path)
                for number in range(6):
                    try:
                        assert _same(cache.get(_key(number)), _item(number)), bit
                    except CacheDamaged as error:
                        found += 1
                        assert str(path) in str(error)
                        assert "delete this file and run `reelwright prepare` again" in str(error)
            except CacheDamaged as error:  # an index is read when the cache is opened
                found += 1
                assert str(path) in str(error)
            assert found, (path.name, bit)
        path.write_bytes(whole)
    assert not Cache(tmp_path).verify()


def test_truncated_shards_are_found_and_the_way_out_works(tmp_path: Path) -> None:
    _filled(tmp_path)
    shard = sorted((tmp_path / "shards").glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    for eighth in range(8):
        shard.write_bytes(whole[: len(whole) * eighth // 8])
        damaged = Cache(tmp_path).verify()
        assert len(damaged) == 1
        assert str(shard) in str(damaged[0])
    shard.unlink()
    cache = Cache(tmp_path)
    missing = [number for number in range(6) if not cache.has(_key(number))]
    assert len(missing) == 3
    for number in missing:
        cache.put(_key(number), "again", _item(number))
    cache.pack()
    cache = Cache(tmp_path)
    assert not cache.verify()
    assert all(_same(cache.get(_key(number)), _item(number)) for number in range(6))


def test_a_damaged_pending_item_is_made_again(tmp_path: Path) -> None:
    _filled(tmp_path, pack=False)
    flipped, cut, *_ = sorted((tmp_path / "pending").iterdir())
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(bytes(data))
    cut.write_bytes(cut.read_bytes()[:100])
    cache = Cache(tmp_path)
    assert len(cache.keys()) == 5
    assert [str(flipped) in str(damage) for damage in cache.verify()] == [True]
    cache.pack()
    assert len(cache.keys()) == 4
    for number in range(6):
        if not cache.has(_key(number)):
            cache.put(_key(number), "text", _item(number))
    assert all(_same(cache.get(_key(number)), _item(number)) for number in range(6))


def test_flipped_bits_in_pending_items_are_found_or_the_items_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_many("text", {_key(number): {"tokens": torch.arange(3 + number)} for number in range(2)})
    path = next((tmp_path / "pending").iterdir())
    whole = path.read_bytes()
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(bytes(flipped))
        cache, missing = Cache(tmp_path), 0
        for number in range(2):
            try:
                assert _same(cache.get(_key(number)), {"tokens": torch.arange(3 + number)}), at
            except (CacheDamaged, KeyError):
                missing += 1
        assert missing, at


def test_several_items_at_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put_many("text", {_key(number): _item(number) for number in range(5)})
    cache.put_many("text", {})
    assert len(list((tmp_path / "pending").iterdir())) == 1
    assert all(_same(Cache(tmp_path).get(_key(number)), _item(number)) for number in range(5))
    with pytest.raises(ValueError, match="NaN"):
        cache.put_many("text", {_key(8): _item(8), _key(9): {"mean": torch.tensor(float("nan"))}})
    assert not cache.has(_key(8))
    cache.pack()
    assert all(_same(Cache(tmp_path).get(_key(number)), _item(number)) for number in range(5))


def test_items_of_another_schema_are_no_hits(tmp_path: Path) -> None:
    _filled(tmp_path)
    for index in (tmp_path / "shards").glob("*.json"):
        content = read_json(index)
        assert content is not None
        write_json(index, {**content, "schema": -1})
    assert not Cache(tmp_path).keys()


def test_disk_trouble_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = _filled(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"bytes cannot be written: No space left on device"):
        cache.put(_key(9), "text", _item(9))
    monkeypatch.undo()
    assert not list((tmp_path / "pending").iterdir())
    assert not Cache(tmp_path).verify()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache folder cannot be made"):
        Cache(tmp_path / "file/cache")
