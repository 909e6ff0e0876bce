"""The pool of decoding children: same results as here, limits in force, and every way a child can be lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import endless_gif
from made_videos import numbered, numbers_of, write_video

from reelwright.data import sandbox
from reelwright.data.decode import BadVideo, VideoInfo, probe, read_spread, read_window
from reelwright.data.limits import LimitsConfig
from reelwright.data.sandbox import Decoders, Unfinished, default_workers
from reelwright.types import FileSlice, Size, UserError

SLOW_FRAMES, SLOW_SIDE = 400, 2000  # 16 MB a frame as decoded: about a second in all
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    with Decoders(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("videos") / "numbered.mp4", numbered(12))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_gif(tmp_path_factory.mktemp("videos") / "slow.gif", SLOW_FRAMES, SLOW_SIDE)


def pids(decoders: Decoders) -> list[int]:
    with decoders._lock:
        return [child._process.pid for child in decoders._children]


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return found


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_child(decoders: Decoders, other_than: int = 0) -> int:
    """The pid of a child that has been decoding for a moment."""
    begun: dict[int, float] = {}

    def found() -> int | None:
        with decoders._lock:
            working = [child._process.pid for child in decoders._children if child.jobs]
        for pid in working:
            if pid != other_than and is_alive(pid):
                seconds = processor_seconds(pid)
                if seconds > begun.setdefault(pid, seconds) + 0.1:
                    return pid
        return None

    return wait_for(found)


def test_results_are_those_of_decoding_here(decoders: Decoders, video: Path) -> None:
    here, there = probe(video), decoders.call(probe, video)
    assert there.to_plain() == here.to_plain()
    assert np.array_equal(here.timestamps, there.timestamps) and there.timestamps.dtype == np.float64
    size = Size(3, 24, 32)
    frames = decoders.call(read_window, video, size, 10.0, 0.1, here)
    assert frames.dtype == np.uint8 and np.array_equal(frames, read_window(video, size, 10.0, 0.1, here))
    frames[0, 0, 0, 0] += 1  # ours, and writable
    assert np.array_equal(decoders.call(read_spread, video, size), read_spread(video, size))
    assert numbers_of(decoders.call(read_window, video, size, fps=30.0, info=there)) == [0, 1, 2]


def test_a_reason_is_the_one_given_here(decoders: Decoders, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(BadVideo) as here:
        probe(tmp_path / "text.mp4")
    with pytest.raises(BadVideo) as there:
        decoders.call(probe, tmp_path / "text.mp4")
    assert str(there.value) == str(here.value)
    assert not isinstance(there.value, Unfinished)
    with pytest.raises(BadVideo, match="the file is not there"):
        decoders.call(probe, tmp_path / "none.mp4")


def test_files_of_any_name_and_slices_of_files(
    decoders: Decoders, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = video.read_bytes()
    (tmp_path / "archive.tar").write_bytes(b"x" * 512 + data + b"y" * 512)
    assert decoders.call(probe, FileSlice(tmp_path / "archive.tar", 512, len(data), "a.mp4")).num_frames == 12
    strange = tmp_path / os.fsdecode(b"na\xffme \n'\xe2\x82\xac.mp4")
    strange.write_bytes(data)
    assert decoders.call(probe, strange).num_frames == 12
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.mp4").write_bytes(data)
    assert decoders.call(probe, Path("near.mp4")).num_frames == 12


def test_threads_share_a_pool(decoders: Decoders, video: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        starts = [k / 30 for k in range(12)] * 4
        jobs = [threads.submit(decoders.call, read_window, video, Size(1, 8, 8), 30.0, start) for start in starts]
        assert [numbers_of(job.result())[0] for job in jobs] == [round(start * 30) for start in starts]


def test_only_functions_of_the_list_run_in_a_child(decoders: Decoders, video: Path) -> None:
    for function in (os.remove, Path.read_bytes, write_video):
        with pytest.raises(ValueError, match="a decoding child runs only"):
            decoders.submit(function, video)
    with pytest.raises(TypeError):
        decoders.submit(read_window, video)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes numbers, text, files, sizes and infos"):
        decoders.submit(probe, object())  # type: ignore[arg-type]


@linux_only
def test_children_start_with_the_first_job_and_end_with_the_pool(video: Path) -> None:
    with Decoders(4) as decoders:
        assert pids(decoders) == []
        decoders.call(probe, video)
        decoders.call(probe, video)
        started = pids(decoders)
        assert len(started) == 1  # one job at a time needs one child
    assert not any(is_alive(pid) for pid in started)
    with pytest.raises(RuntimeError):
        decoders.submit(probe, video)


@linux_only
def test_a_child_is_small_limited_and_knows_no_secrets(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", "")
    with Decoders(1, LimitsConfig(memory_mb=300)) as decoders:
        decoders.call(probe, video)
        process = Path(f"/proc/{pids(decoders)[0]}")
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
        limits = {line[:26].strip(): line[26:47].strip() for line in (process / "limits").read_text().splitlines()}
        environment = (process / "environ").read_bytes()
        mapped = (process / "maps").read_text()
        streams = [str((process / "fd" / str(number)).readlink()) for number in range(3)]
        session = os.getsid(int(process.name))
    assert int(status["VmHWM"].split()[0]) < 120_000  # kB
    assert "torch" not in mapped and "pydantic" not in mapped
    assert b"secret" not in environment and b"PYTHONPATH" not in environment
    assert streams == ["/dev/null"] * 3
    assert session == int(process.name)
    space = int(limits["Max address space"])
    assert 300 << 20 < space < (300 << 20) + (1 << 30)
    assert limits["Max core file size"] == limits["Max file size"] == limits["Max processes"] == "0"
    assert int(limits["Max open files"]) <= 64
    assert int(limits["Max cpu time"]) < 200


def test_a_child_that_does_not_start_is_no_files_fault(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CHILD", "reelwright.no_such_module")
    with Decoders(1) as decoders:
        for _ in range(2):
            with pytest.raises(UserError, match=r"does not start: exit code 1; see what this prints: .*no_such_module"):
                decoders.call(probe, video)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Decoders(1) as decoders, pytest.raises(UserError, match="no process can be started"):
        decoders.call(probe, video)


def test_a_forked_process_is_told_to_make_its_own(decoders: Decoders, video: Path) -> None:
    child = os.fork()
    if child == 0:
        try:
            decoders.submit(probe, video)
        except RuntimeError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert default_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert default_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert default_workers() == 1
    with pytest.raises(ValueError, match="workers = 0"):
        Decoders(0)


def test_closing_ends_jobs_in_progress_at_once(slow: Path) -> None:
    decoders = Decoders(1)
    jobs = [decoders.submit(probe, slow) for _ in range(3)]
    wait_for(lambda: jobs[0].running() and pids(decoders))
    started = time.monotonic()
    decoders.close()
    assert time.monotonic() - started < 3
    for job in jobs:
        with pytest.raises(CancelledError):
            job.result(timeout=1)


@linux_only
def test_a_child_killed_from_outside_is_replaced_and_its_job_done_again(slow: Path) -> None:
    with Decoders(1) as decoders:
        job = decoders.submit(probe, slow)
        killed = busy_child(decoders)
        os.kill(killed, signal.SIGKILL)
        assert job.result(timeout=60).num_frames == SLOW_FRAMES
        assert pids(decoders) and killed not in pids(decoders)


@linux_only
def test_a_file_whose_decoder_is_killed_twice_is_given_up(slow: Path, video: Path) -> None:
    with Decoders(1) as decoders:
        job = decoders.submit(probe, slow)
        first = busy_child(decoders)
        os.kill(first, signal.SIGKILL)
        os.kill(busy_child(decoders, other_than=first), signal.SIGKILL)
        with pytest.raises(Unfinished, match=r"killed from outside, twice \(SIGKILL\)"):
            job.result(timeout=60)
        assert decoders.call(probe, video).num_frames == 12


@linux_only
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_in_a_fresh_child_is_the_files_fault(slow: Path, video: Path, number: signal.Signals) -> None:
    with Decoders(1) as decoders:
        job = decoders.submit(probe, slow)
        os.kill(busy_child(decoders), number)
        with pytest.raises(Unfinished, match=rf"^crashed its decoder \({number.name}\)$"):
            job.result(timeout=60)
        assert decoders.call(probe, video).num_frames == 12


@linux_only
def test_a_crash_after_other_files_is_tried_in_a_fresh_child(slow: Path, video: Path) -> None:
    with Decoders(1) as decoders:
        decoders.call(probe, video)
        job = decoders.submit(probe, slow)
        os.kill(busy_child(decoders), signal.SIGSEGV)
        assert job.result(timeout=60).num_frames == SLOW_FRAMES


@linux_only
def test_a_stopped_child_is_noticed_within_the_time_out(slow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 0.0)
    monkeypatch.setattr(sandbox, "WALL_SLACK", 5.0)
    with Decoders(1) as decoders:
        job = decoders.submit(probe, slow)
        stopped = busy_child(decoders)
        monkeypatch.setattr(sandbox, "WALL_SLACK", 60.0)  # for the second try, on a busy machine
        started = time.monotonic()
        os.kill(stopped, signal.SIGSTOP)
        assert job.result(timeout=60).num_frames == SLOW_FRAMES
        assert time.monotonic() - started < 50
        assert not is_alive(stopped)


def test_what_neither_ends_nor_works_is_given_up(slow: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "WALL_FACTOR", 0.0)
    monkeypatch.setattr(sandbox, "WALL_SLACK", 0.4)
    with Decoders(1) as decoders:
        with pytest.raises(Unfinished, match=r"^did not decode within 0.4 s$"):
            decoders.call(probe, slow)
        monkeypatch.setattr(sandbox, "WALL_SLACK", 60.0)
        assert decoders.call(probe, video).num_frames == 12


@linux_only
def test_signals_meant_for_the_run_do_not_end_a_child(slow: Path) -> None:
    with Decoders(1) as decoders:
        job = decoders.submit(probe, slow)
        child = busy_child(decoders)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(child, number)
        assert job.result(timeout=60).num_frames == SLOW_FRAMES
        assert pids(decoders) == [child]


@linux_only
def test_processor_time_is_counted_for_each_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "SECONDS_PER_MB", 0.0)
    endless = endless_gif(tmp_path / "endless.gif", 50 * SLOW_FRAMES, SLOW_SIDE)
    with Decoders(1, LimitsConfig(seconds=1)) as decoders:
        with pytest.raises(Unfinished, match=r"took longer than 1 s of processor time to decode"):
            decoders.call(probe, endless)
        small = endless_gif(tmp_path / "small.gif", SLOW_FRAMES // 4, SLOW_SIDE)
        for _ in range(5):  # more than a second in all
            assert decoders.call(probe, small).num_frames == SLOW_FRAMES // 4
        assert processor_seconds(pids(decoders)[0]) > 1


PARENT = """
import signal, sys, time
from pathlib import Path
from reelwright.data.decode import probe
from reelwright.data.sandbox import Decoders
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
with Decoders(2) as decoders:
    jobs = [decoders.submit(probe, Path(sys.argv[1])) for _ in range(4)]
    while len(decoders._children) < 2 or not all(child.jobs for child in decoders._children):
        time.sleep(0.01)
    time.sleep(0.5)
    print(*[child._process.pid for child in decoders._children], flush=True)
    jobs[-1].result()
"""


@linux_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_child_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    endless = endless_gif(tmp_path / "endless.gif", 50 * SLOW_FRAMES, SLOW_SIDE)
    parent = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-c", PARENT, str(endless)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    assert len(children) == 2 and all(is_alive(pid) for pid in children)
    os.killpg(parent.pid, number)  # what a terminal does on Ctrl-C
    try:
        _, errors = parent.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        parent.send_signal(signal.SIGABRT)
        pytest.fail(f"it hangs: {parent.communicate()[1]}")  # where all its threads are
    wait_for(lambda: not any(is_alive(pid) for pid in children), seconds=5)
    assert errors.count("Traceback") == (number == signal.SIGINT), errors
    assert errors.count("KeyboardInterrupt") == (number == signal.SIGINT)


def test_futures_can_be_waited_for_in_any_thread(decoders: Decoders, video: Path) -> None:
    job: Future[VideoInfo] = decoders.submit(probe, video)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(job.result().num_frames))
    thread.start()
    thread.join()
    assert seen == [12]
