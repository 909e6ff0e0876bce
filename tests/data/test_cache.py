"""The cache is whole after a kill at any instant and never gives bytes that were not put into it."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reelwright.data import cache as cache_module
from reelwright.data import lock, tensorfile
from reelwright.data.cache import Cache, CacheDamaged
from reelwright.data.sealed import read_json, write_json
from reelwright.data.tensorfile import TensorFile
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
    cache = _filled(tmp_path, pack=False)
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
        monkeypatch.setattr(lock, "_SECONDS", 0.1)
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


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_mending_forgets_the_damaged_items_and_keeps_those_beside_them(tmp_path: Path) -> None:
    _filled(tmp_path)
    first, second = sorted((tmp_path / "shards").glob("*.safetensors"))
    _flip(first, -1)  # in the last item of three
    cache = Cache(tmp_path)
    seen: list[tuple[int, int]] = []
    cache.mend(lambda *at: seen.append(at))
    assert seen == [(n, 6) for n in range(1, 7)]
    (damage,) = cache.mended
    assert str(damage).startswith(f"{first}: damaged")
    for mended in (cache, Cache(tmp_path)):
        assert mended.keys() == {_key(number) for number in range(6)} - {damage.key} and not mended.verify()
    again = Cache(tmp_path)
    again.put(damage.key, "latent-2x4x4" if int(damage.key, 16) % 2 else "text", _item(int(damage.key, 16)))
    again.pack()
    assert all(_same(Cache(tmp_path).get(_key(number)), _item(number)) for number in range(6))
    assert not first.exists() and second.exists()
    untouched = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    cache = Cache(tmp_path)
    cache.mend()
    assert not cache.mended and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == untouched


@pytest.mark.parametrize("where", ["shard cut", "header", "index", "shard gone", "pending"])
def test_whatever_is_damaged_mending_leaves_a_cache_that_can_be_filled_again(tmp_path: Path, where: str) -> None:
    _filled(tmp_path, pack=where != "pending")
    if where == "pending":
        _flip(sorted((tmp_path / "pending").iterdir())[0], -1)
    shard = next(iter(sorted((tmp_path / "shards").glob("*.safetensors"))), tmp_path)
    if where == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-40])
    elif where == "header":
        _flip(shard, 6)  # of its length
    elif where == "index":
        _flip(shard.with_suffix(".json"), 30)
    cache = Cache(tmp_path, mend=True)
    if where == "shard gone":
        shard.unlink()
    cache.mend()
    assert bool(cache.mended) == (where != "pending"), "a damaged pending file counts as never made"
    lost = [number for number in range(6) if not cache.has(_key(number))]
    assert len(lost) == (1 if where == "pending" else 3)
    for number in lost:
        cache.put(_key(number), "latent-2x4x4" if number % 2 else "text", _item(number))
    cache.pack()
    assert all(_same(Cache(tmp_path).get(_key(number)), _item(number)) for number in range(6))
    assert not Cache(tmp_path).verify()


def test_a_damaged_pending_item_is_made_again(tmp_path: Path) -> None:
    _filled(tmp_path, pack=False)
    flipped, cut, *_ = sorted((tmp_path / "pending").iterdir())
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(bytes(data))
    cut.write_bytes(cut.read_bytes()[:100])
    cache = Cache(tmp_path)
    assert len(cache.keys()) == 4 and not cache.verify()
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


def test_items_are_stacked_in_the_order_of_their_keys(tmp_path: Path) -> None:
    cache = _filled(tmp_path, 6)
    cache.put(_key(6), "text", _item(6))  # still pending
    cache.put(_key(7), "text", {"mean": torch.zeros(2, 3, 4, 5), "logvar": torch.zeros(2, 3, 4, 4)})
    cache.put(_key(8), "text", {"mean": _item(8)["mean"]})
    order = [4, 6, 1, 0, 4, 3]
    for _ in range(2):
        stacked = cache.stack([_key(number) for number in order])
        assert {name: tensor.dtype for name, tensor in stacked.items()} == {
            "mean": torch.float32, "logvar": torch.bfloat16
        }  # fmt: skip
        for row, number in enumerate(order):
            assert _same({name: tensor[row] for name, tensor in stacked.items()}, _item(number))
    for other in (7, 8):
        with pytest.raises(ValueError, match="differ in names, types or shapes"):
            cache.stack([_key(1), _key(other)])
    with pytest.raises(KeyError, match="not in the cache"):
        cache.stack([_key(1), _key(99)])


@pytest.mark.parametrize("read", ["get", "stack"])
def test_every_process_compares_an_items_bytes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: str) -> None:
    _filled(tmp_path)
    compared: list[int] = []
    checksum = tensorfile.item_checksum
    monkeypatch.setattr(tensorfile, "item_checksum", lambda tensors: (compared.append(1), checksum(tensors))[1])
    for _ in range(2):  # two caches stand for two processes
        cache = Cache(tmp_path)
        for _ in range(3):
            for number in (0, 1, 2):
                cache.get(_key(number)) if read == "get" else cache.stack([_key(number)])
        assert len(compared) == 3
        compared.clear()
    assert not cache.verify() and len(compared) == 6, "verify reads and compares everything, whatever was read before"


@pytest.mark.parametrize("read", ["get", "stack"])
def test_damage_names_its_item(tmp_path: Path, read: str) -> None:
    _filled(tmp_path)
    shard = next((tmp_path / "shards").glob("latent*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the last tensor
    shard.write_bytes(bytes(data))
    cache, found = Cache(tmp_path), []
    for number in (1, 3, 5):
        try:
            cache.get(_key(number)) if read == "get" else cache.stack([_key(number)])
        except CacheDamaged as damage:
            found.append(damage.key)
    assert len(found) == 1 and found[0] in {_key(number) for number in (1, 3, 5)}
    shard.unlink()
    with pytest.raises(CacheDamaged, match="it is gone") as caught:
        _reopened(cache).get(_key(3))
    assert caught.value.key == _key(3)


def _reopened(cache: Cache) -> Cache:
    """The same cache with its files closed, as when too many of them were open."""
    cache._files.clear()
    return cache


def test_few_files_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_OPEN_FILES", 2)
    cache = Cache(tmp_path)
    for number in range(6):
        cache.put(_key(number), f"kind{number}", _item(number))
    cache.pack()
    for _ in range(2):
        assert all(_same(cache.get(_key(number)), _item(number)) for number in range(6))
    assert len(cache._files) == 2


def test_an_item_put_again_is_read_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for number in (1, 2):
        cache.put(_key(0), "latent", _item(number))
        assert _same(cache.get(_key(0)), _item(number))


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


def _failing(monkeypatch: pytest.MonkeyPatch, number: int, name: str = "", gone: bool = False) -> None:
    """Let reading of tensors fail with an error of the system: of every file, or of the one called `name`."""

    def read(self: TensorFile, stored: Any, buffer: memoryview) -> None:
        path = Path(self._file.name)
        if name in path.name:
            if gone:
                path.unlink()
            raise OSError(number, os.strerror(number))
        original(self, stored, buffer)

    original = TensorFile.read
    monkeypatch.setattr(TensorFile, "read", read)


@contextmanager
def _files_left(count: int) -> Iterator[None]:
    """This process may open `count` files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/dev/fd").iterdir())
    held = [os.dup(0)]
    while held[-1] < highest:  # the limit is on numbers: fill the gaps that closed files left
        held.append(os.dup(0))
    os.close(held[-1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (held.pop() + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.parametrize("read", ["get", "stack"])
def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path, read: str) -> None:
    _filled(tmp_path)
    cache = Cache(tmp_path)
    with pytest.raises(UserError, match=r"latent-.*cannot be read \(Too many open files\); it is kept") as caught, \
            _files_left(0):  # fmt: skip
        cache.get(_key(1)) if read == "get" else cache.stack([_key(1)])
    assert not isinstance(caught.value, CacheDamaged)
    assert _same(cache.get(_key(1)), _item(1))


def test_a_batch_from_more_files_than_can_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _filled(tmp_path, 40, pack=False)
    cache = Cache(tmp_path)
    cache._files.clear()
    monkeypatch.setattr(cache_module, "_OPEN_FILES", 4)
    with _files_left(10):
        stacked = cache.stack([_key(number) for number in range(40)])
    assert all(torch.equal(stacked["mean"][number], _item(number)["mean"]) for number in range(40))


@pytest.mark.parametrize("error", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_pending_file_that_cannot_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    cache = _filled(tmp_path, pack=False)
    third = sorted((tmp_path / "pending").iterdir())[2]
    with monkeypatch.context() as patch:
        _failing(patch, error, third.name)
        for attempt in (cache.pack, lambda: Cache(tmp_path)):
            with pytest.raises(UserError, match=f"{third.name}: cannot be read") as caught:
                attempt()
            assert not isinstance(caught.value, CacheDamaged)
    cache.pack()
    assert not list((tmp_path / "pending").iterdir()) and not Cache(tmp_path).verify()
    assert all(_same(Cache(tmp_path).get(_key(number)), _item(number)) for number in range(6))


def test_a_pending_file_that_went_while_it_was_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system where another machine packs."""
    _filled(tmp_path, pack=False)
    third = sorted((tmp_path / "pending").iterdir())[2]
    _failing(monkeypatch, errno.ESTALE, third.name, gone=True)
    assert len(Cache(tmp_path).keys()) == 5


def _state(root: Path) -> dict[Path, tuple[int, int, int]]:
    """What any writing below a folder changes."""
    stats = {path: path.stat() for path in (root, *root.rglob("*"))}
    return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats.items()}


def test_where_nothing_is_pending_nothing_is_written(tmp_path: Path) -> None:
    cache = _filled(tmp_path, pack=False)
    other = Cache(tmp_path)
    other.pack()
    (tmp_path / "lock").unlink()
    before = _state(tmp_path)
    cache.pack()
    Cache(tmp_path).pack()
    assert _state(tmp_path) == before
    assert not cache._waiting and all(_same(cache.get(_key(number)), _item(number)) for number in range(6))


def test_a_cache_that_may_only_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _filled(tmp_path)
    (tmp_path / "pending").rmdir()  # a copy may lack empty folders

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def reading(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return original(self, mode, *args, **kwargs) if set(mode) <= set("rb") else refuse()

    original = Path.open
    monkeypatch.setattr(Path, "open", reading)
    for name in ("mkdir", "unlink", "replace"):
        monkeypatch.setattr(Path, name, refuse)
    cache = Cache(tmp_path)
    cache.pack()
    assert not cache.verify()
    assert all(_same(cache.get(_key(number)), _item(number)) for number in range(6))
    cache.probes.put("a", 1)
    assert cache.probes.get("a") == 1, "not kept, which costs time alone"
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        cache.put(_key(9), "text", _item(9))
    with pytest.raises(UserError, match="lock: cannot be written"), lock.locked(tmp_path / "lock"):
        pass


def test_the_journals_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    cache = _filled(tmp_path)
    cache.probes.put("a", 1)
    cache = Cache(tmp_path)
    cache.get(_key(0))
    assert not {"files", "probes"} & vars(cache).keys()
    assert cache.probes.get("a") == 1 and cache.probes is cache.probes
