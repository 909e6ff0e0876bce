"""`prepare` on Ray: the same bytes as in one process, also when workers are killed; nothing is left behind."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import reelwright
from reelwright.bundle import build_codec, fitted_path
from reelwright.data.cache import Cache
from reelwright.data.inspection import inspect
from reelwright.data.sandbox import Decoders
from reelwright.data.sources import Dropped
from reelwright.data.windows import WindowReader
from reelwright.prepare import Engine, prepare, ray_engine
from reelwright.prepare.encoding import encode_pieces
from reelwright.prepare.pieces import pieces_of
from reelwright.prepare.ray_engine import encode_with_ray
from reelwright.prepare.ray_session import connected
from reelwright.recipe import Recipe
from reelwright.types import UsageError, UserError

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
PREPARE = [sys.executable, "-P", "-m", "reelwright", "prepare"]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    """One Ray for the tests of this file, as starting it takes seconds."""
    with connected(num_cpus=2):
        yield


@pytest.fixture
def own(tmp_path: Path, shapes_clips: Path, write_recipe) -> Any:
    """A recipe on a copy of the collection: `own("cache-name", "codec.channels=16")`."""
    data = shutil.copytree(shapes_clips, tmp_path / "data")

    def load(cache: str, *overrides: str) -> Recipe:
        return Recipe.load(write_recipe(*overrides, data=data, cache=tmp_path / cache))

    return load


def prepared(recipe: Recipe) -> tuple[Any, Any, list[Any]]:
    """(codec, inspection, pieces): what `prepare` hands to an engine."""
    prepare(recipe)  # fits the codec
    codec = build_codec(recipe)
    inspection = inspect(recipe.data)
    pieces = [p for s in inspection.samples for p in pieces_of(inspection, s, recipe.data, codec.fingerprint())]
    return codec, inspection, pieces


def assert_same(one: Path, other: Path, manifests: bool = True) -> None:
    """Two cache folders: the same items, byte for byte, and the same manifests."""
    caches = [Cache(one), Cache(other)]
    assert caches[0].keys() == caches[1].keys() and caches[0].keys()
    for key in caches[0].keys():  # noqa: SIM118
        items = [cache.get(key) for cache in caches]
        assert items[0].keys() == items[1].keys()
        for name, tensor in items[0].items():
            assert tensor.dtype == items[1][name].dtype and torch.equal(tensor, items[1][name]), key
    if manifests:
        texts = [{p.name: p.read_bytes() for p in (folder / "manifests").iterdir()} for folder in (one, other)]
        assert texts[0] == texts[1] and texts[0]


def descendants(pid: int) -> dict[int, str]:
    """Command lines of a process's children, their children and so on, by pid."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found, waiting = {}, list(parents.get(pid, ()))
    while waiting:
        child = waiting.pop()
        waiting += parents.get(child, ())
        with contextlib.suppress(OSError):
            found[child] = Path(f"/proc/{child}/cmdline").read_text(errors="replace").replace("\0", " ")
    return found


class Started:
    """A process, and every process that was ever seen below it."""

    def __init__(self, command: list[Any], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command], env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.seen: dict[int, str] = {}
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while self.process.poll() is None:
            self.seen |= descendants(self.process.pid)
            time.sleep(0.05)

    def runs(self, name: str) -> bool:
        return any(name in line for line in descendants(self.process.pid).values())

    def end(self, seconds: float = 240) -> tuple[int, str, str]:
        """(exit code, standard output, standard error)"""
        try:
            out, said = self.process.communicate(timeout=seconds)
        finally:
            self.process.kill()  # where it did not end in time
        return self.process.returncode, out, said

    def left(self) -> dict[int, str]:
        """What still runs of all below it, after two minutes in which to go: Ray looks once a minute who has died."""
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in self.seen), seconds=120)
        return {pid: line for pid, line in self.seen.items() if Path(f"/proc/{pid}").exists()}


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """For a command, with a home and a folder for temporary files of its own."""
    (tmp_path / "home").mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rw-") as temporary:  # short, as the paths of sockets must be
        yield {**os.environ, "TMPDIR": temporary, "HOME": str(tmp_path / "home")}


def wait_until(true: Callable[[], Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def tiny_autoencoder(folder: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, norm_num_groups=8, latent_channels=4,
    ).save_pretrained(folder)  # fmt: skip


@pytest.mark.full
def test_killed_workers_lose_nothing(session, own, tmp_path, monkeypatch):
    """Both kinds of workers get SIGKILL when the first latent is on disk; their blocks are done again."""
    monkeypatch.setattr(ray_engine, "BLOCK_PIECES", 1)
    alone = prepare(own("alone"))
    pending, killed, stored = tmp_path / "ray" / "pending", set(), []

    def kill() -> None:
        while not list(pending.glob("*.safetensors")):  # fitting stores nothing there
            time.sleep(0.001)
        for pid, line in descendants(os.getpid()).items():
            for name in ("_Decode", "_Encode"):
                if line.startswith("ray::") and name in line:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(name)
        stored.append(len(list(pending.glob("*.safetensors"))))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    spread = prepare(own("ray"), engine=Engine("ray"))
    killer.join(timeout=10)
    assert killed == {"_Decode", "_Encode"}
    assert stored[0] < 24, "the workers were killed too late to be missed"
    assert (spread.encoded, spread.texts, spread.fitted) == (24, alone.texts, alone.fitted)
    assert_same(tmp_path / "alone", tmp_path / "ray")


@pytest.mark.full
def test_bad_clips_have_the_same_reasons(session, own, tmp_path):
    recipe = own("cache")
    codec, inspection, pieces = prepared(recipe)
    videos = [piece.sample.clip.video for piece in pieces]
    videos[3].write_bytes(videos[3].read_bytes()[:-200])  # since it was inspected
    videos[5].unlink()
    with Decoders(1) as decoders:
        reader = WindowReader(inspection, decoders)
        there = Cache(tmp_path / "local")
        assert encode_pieces(codec, there, reader.read(pieces), recipe.data.cache_dtype, torch.device("cpu")) == []
    for name in ("pending", "shards"):
        shutil.rmtree(tmp_path / "cache" / name)
    seen = []
    lost = encode_with_ray(recipe, codec, Cache(recipe.cache_dir), pieces, inspection.info, lambda *s: seen.append(s))
    assert lost == reader.dropped and [item.id for item in lost] == [videos[3].name, videos[5].name]
    assert seen[-1] == ("encoding", 24, 24)
    assert_same(tmp_path / "local", tmp_path / "cache", manifests=False)


@pytest.mark.full
@pytest.mark.parametrize("codec", ["pca", "autoencoder_kl"])
def test_every_codec_makes_what_one_process_makes(session, own, tmp_path, codec):
    """In buckets of two sizes, augmented, and with as many threads as this process has."""
    overrides = ["data.buckets=[[8, 32, 32], [8, 16, 16]]", "data.augment=[{type: flip}]", "data.variants=2"]
    if codec == "autoencoder_kl":
        tiny_autoencoder(tmp_path / "vae")
        overrides.append(f"codec={{type: autoencoder_kl, model: {tmp_path / 'vae'}}}")
    alone = prepare(own("alone", *overrides))
    assert prepare(own("ray", *overrides), engine=Engine("ray")).encoded == alone.encoded
    assert_same(tmp_path / "alone", tmp_path / "ray")
    assert prepare(own("ray", *overrides), engine=Engine("ray")).encoded == 0


@pytest.mark.full
def test_latents_that_are_not_finite_are_named(session, own):
    recipe = own("cache")
    codec, inspection, pieces = prepared(recipe)
    codec.mean[0] = float("nan")
    save_file(codec.state_dict(), fitted_path(recipe, "codec"))
    lost = encode_with_ray(recipe, codec, Cache(recipe.cache_dir), pieces[:3], inspection.info, lambda *_: None)
    assert lost == [Dropped(p.sample.clip.id, "the codec pca makes NaN or infinity of it") for p in pieces[:3]]


@pytest.mark.full
def test_what_a_worker_cannot_mend_comes_as_one_message(session, own, monkeypatch):
    recipe = own("cache")
    codec, inspection, pieces = prepared(recipe)
    monkeypatch.setattr("reelwright.__version__", "99.0")
    with pytest.raises(
        UserError, match=r"^machine \S+ of the Ray cluster has reelwright .*, this one 99\.0; install [^\n]*$"
    ):
        encode_with_ray(recipe, codec, Cache(recipe.cache_dir), pieces, inspection.info, lambda *_: None)


def test_a_worker_that_sees_other_files_or_weights_says_so(own, tmp_path):
    recipe = own("cache")
    prepared(recipe)
    told = ray_engine._Told(recipe, "another", "", str(tmp_path), reelwright.__version__, 1)
    block = {name: np.array([]) for name in ("place", "piece", "frames", "reason")}
    with pytest.raises(UserError, match="other weights than this one"):
        ray_engine._Encode(told, "cpu")(block)
    with pytest.raises(UserError, match=r"has reelwright .*, this one 99\.0; install the same version on all"):
        replace(told, version="99.0").settle()
    shutil.rmtree(recipe.cache_dir)
    with pytest.raises(UserError, match=r"cache_dir = .*cache: not there on machine \S+ of the Ray cluster"):
        told.settle()


def test_latents_that_never_appear_are_no_success(own, monkeypatch):
    """Where each machine has a folder of its own under the name of the cache."""
    recipe = own("cache")
    _, _, pieces = prepared(recipe)
    cache, reasons = Cache(recipe.cache_dir), {0: "", 1: "", 2: "bad"}
    ray_engine._wait_until_seen(cache, pieces, reasons)
    monkeypatch.setattr(ray_engine, "SEEN_SECONDS", 0.0)
    other = [replace(piece, key="0" * 40) for piece in pieces]
    with pytest.raises(UserError, match="2 latents that Ray's workers stored there do not appear here"):
        ray_engine._wait_until_seen(cache, other, reasons)


def test_without_the_extra_one_message(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'reelwright\[ray\]'"), connected():
        pass


@pytest.mark.full
def test_the_command_leaves_no_process_and_no_file(write_recipe, tmp_path, environment):
    recipe = write_recipe(cache=tmp_path / "cache")
    command = Started([*PREPARE, recipe, "engine=ray", "workers=1", "--json"], environment)
    code, out, said = command.end()
    assert code == 0, said
    assert json.loads(out)["encoded"] == 24 and "ray" not in said.lower()
    assert any("_Encode" in line for line in command.seen.values()) and not command.left()
    assert list(Path(environment["TMPDIR"]).iterdir()) == [] and list(Path(environment["HOME"]).iterdir()) == []


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_no_process_and_goes_on(write_recipe, tmp_path, environment, number):
    for attempt in range(3):
        recipe = write_recipe(cache=tmp_path / f"cache-{attempt}")
        command = Started([*PREPARE, recipe, "engine=ray", "workers=1"], environment)
        wait_until(lambda command=command: command.process.poll() is not None or command.runs("_Encode"), seconds=120)
        command.process.send_signal(number)
        code, _, said = command.end()
        if code != 0:  # else it was done before the signal came
            break
    assert code != 0 and "Traceback" not in said, said
    assert command.seen and not command.left()
    code, out, said = Started([*PREPARE, recipe, "--json"], environment).end()
    assert code == 0 and json.loads(out)["samples"]["train"] > 0, said


@pytest.mark.full
def test_a_lost_machine_of_a_cluster_loses_nothing(own, tmp_path, environment):
    """Two machines, played by two `ray start`; the second is killed, with the frames that lay in its memory."""
    alone = prepare(own("alone"))
    own("ray")
    port = free_port()
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled"}
    common = ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
    at = f"127.0.0.1:{port}"
    temporary = f"--temp-dir={environment['TMPDIR']}/r"
    head = Started(
        [RAY, "start", "--head", f"--port={port}", "--include-dashboard=false", temporary, *common], environment
    )
    wait_until(lambda: is_open(port), seconds=60)
    second = Started([RAY, "start", f"--address={at}", *common], environment)
    try:
        wait_until(lambda: second.runs("raylet/raylet") and second.runs("ray::IDLE"), seconds=60)
        pending = tmp_path / "ray" / "pending"
        recipe = tmp_path / "recipe.yaml"
        command = Started([*PREPARE, recipe, "engine=ray", f"address={at}", "workers=2", "--json"], environment)
        wait_until(lambda: command.process.poll() is not None or list(pending.glob("*.safetensors")), seconds=120)
        for pid in descendants(second.process.pid):
            os.kill(pid, signal.SIGKILL)
        code, out, said = command.end()
        assert code == 0, said
        assert json.loads(out)["encoded"] == alone.encoded == 24
        assert head.process.poll() is None, "the cluster is its owner's to stop"
        assert_same(tmp_path / "alone", tmp_path / "ray")
    finally:
        for machine in (head, second):
            machine.process.terminate()
            machine.end()
    assert not head.left() and not second.left()


@pytest.mark.full
def test_no_cluster_at_an_address(write_recipe, tmp_path, environment):
    recipe, address = write_recipe(cache=tmp_path / "cache"), f"127.0.0.1:{free_port()}"
    code, _, said = Started([*PREPARE, recipe, "engine=ray", f"address={address}"], environment).end()
    assert code == 2 and f"address = '{address}': no Ray cluster answers there" in said and "Traceback" not in said
