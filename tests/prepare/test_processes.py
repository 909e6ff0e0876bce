"""Several processes share one `prepare`: the same cache as one, and an error of one ends all with one message."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from reelwright.data.cache import Cache
from reelwright.prepare import open_prepared, prepare
from reelwright.prepare.processes import EndedByAnother, Processes
from reelwright.recipe import Recipe
from reelwright.types import UserError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def pair() -> Iterator[tuple[Processes, Processes]]:
    """Two that speak through one store, as two processes would."""
    port = free_port()
    host = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    other = torch.distributed.TCPStore("127.0.0.1", port, is_master=False)
    yield Processes(0, 2, host), Processes(1, 2, other)


def test_alone_it_takes_all_and_waits_for_nobody():
    alone = Processes()
    alone.tell("planned")
    alone.end_with_others()
    assert alone.first and alone.takes("00ff" * 10) and alone.add("windows", 3) == 3


def test_each_item_is_taken_by_exactly_one():
    keys = [f"{number * 2654435761 % 2**32:08x}" + "0" * 32 for number in range(1000)]
    shares = [{key for key in keys if Processes(rank, 3, None).takes(key)} for rank in range(3)]
    assert set.union(*shares) == set(keys) and sum(map(len, shares)) == len(keys)
    assert min(map(len, shares)) > 250


def test_what_one_tells_the_others_hear(pair):
    first, second = pair
    waited: list[int] = []

    def late() -> None:
        time.sleep(0.3)
        second.tell("encoded", [["a", "it is bad"]])

    thread = threading.Thread(target=late)
    thread.start()
    first.tell("encoded", [])
    assert first.hear_all("encoded", lambda: waited.append(1)) == [[], [["a", "it is bad"]]]
    thread.join()
    assert waited, "while it waits it still looks up"
    assert [first.add("windows", 5), second.add("windows", 2), first.add("windows", 0)] == [5, 7, 7]


def test_who_waits_ends_when_another_fails(pair):
    first, second = pair
    failed = UserError("no room")
    thread = threading.Thread(target=lambda: (time.sleep(0.2), second.fail(failed)))
    thread.start()
    with pytest.raises(EndedByAnother) as ended:
        first.hear("encoded", 1, lambda: None)
    assert ended.value.code == 1
    thread.join()


def test_who_works_ends_when_another_was_interrupted(pair):
    first, second = pair
    threading.Thread(target=lambda: first.fail(KeyboardInterrupt())).start()
    with pytest.raises(EndedByAnother) as ended:
        for _ in range(100):
            second.end_with_others()
            time.sleep(0.05)
    assert ended.value.code == 130


def launch(script: str, recipe: Path, count: int = 2) -> list[tuple[int, str, str]]:
    """(exit code, output, errors) of `count` processes that run a script together, as torchrun starts them."""
    port = str(free_port())
    processes = []
    for rank in range(count):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        environment |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", script, "prepare", str(recipe)]
        processes.append(
            subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
    try:
        return [(process.returncode, *ends) for process in processes for ends in [process.communicate(timeout=120)]]
    finally:
        for process in processes:
            process.kill()


def items(recipe: Recipe) -> dict[str, dict[str, torch.Tensor]]:
    cache = Cache(recipe.cache_dir)
    return {key: cache.get(key) for key in cache.keys()}  # noqa: SIM118


COMMAND = "from reelwright.cli import main; main()"


def test_two_processes_make_the_cache_that_one_makes(tmp_path, write_recipe, shapes_clips):
    data = shutil.copytree(shapes_clips, tmp_path / "data")
    (data / "videos" / "00009.mp4").write_text("no video")
    caches = [tmp_path / "alone", tmp_path / "together"]
    alone, together = (
        Recipe.load(write_recipe(folder=cache.with_suffix(".d"), data=data, cache=cache)) for cache in caches
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the two have
    try:
        summary = prepare(alone)
    finally:
        torch.set_num_threads(threads)
    (code, out, err), (other_code, other_out, other_err) = launch(COMMAND, tmp_path / "together.d" / "recipe.yaml")
    assert (code, other_code) == (0, 0), err + other_err
    assert "23 encoded now, 0 were there" in out and "dropped 00009.mp4" in out and other_out == ""
    expected, found = items(alone), items(together)
    assert expected.keys() == found.keys()
    for key, item in expected.items():
        assert all(torch.equal(tensor, found[key][name]) for name, tensor in item.items()), key
    manifest = open_prepared(together).manifest
    assert (manifest.samples, manifest.dropped) == (summary.manifest.samples, summary.manifest.dropped)
    assert manifest.about == summary.manifest.about


FAILING = """
import os
import reelwright.prepare.verb as verb
from reelwright.types import UserError

def fail(*_):
    raise UserError("the disk of this process is full")

if os.environ["RANK"] == "{rank}":
    verb.encode_pieces = fail
from reelwright.cli import main
main()
"""


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.full)])
def test_an_error_of_one_ends_all_with_one_message(rank, tmp_path, write_recipe):
    started = time.monotonic()
    ends = launch(FAILING.format(rank=rank), write_recipe(cache=tmp_path / "cache"))
    assert [code for code, _, _ in ends] == [1, 1]
    said = "".join(err for _, _, err in ends)
    assert said.count("reelwright: the disk of this process is full") == 1 and "Traceback" not in said
    assert time.monotonic() - started < 60


@pytest.mark.full
def test_training_shares_the_preparing(tmp_path, write_recipe):
    recipe = write_recipe("train.steps=1", "train.precision=fp32", cache=tmp_path / "cache")
    script = COMMAND.replace("main()", "import sys; sys.argv[1] = 'train'; main()")
    ends = launch(script, recipe)
    said: Any = [out + err for _, out, err in ends]
    assert [code for code, _, _ in ends] == [0, 0], said
    assert "24 encoded now" in said[0] and "encoded now" not in said[1]
