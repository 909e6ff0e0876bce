import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from reelwright.metrics.torchscript import load_torchscript
from reelwright.types import UserError

CPU = torch.device("cpu")
OWN_CODE = f"code/__torch__/{__name__.replace('.', '/')}.py"  # where an archive keeps the code of the classes below


class Tiny(nn.Module):
    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv3d(3, outputs, 3), nn.BatchNorm3d(outputs), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(dim=[2, 3, 4])


class OverTime(Tiny):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean(dim=[3, 4])  # b d f


class WithOptions(Tiny):
    """Takes what the I3D archive that is passed round takes."""

    def forward(self, x: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Tensor:
        if rescale or resize or not return_features:
            raise ValueError("wrong options")
        return self.net(x).mean(dim=[2, 3, 4])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Number(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[1, 2, 3, 4])


class Images(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, torch.ones(1, 3, 1, 1))


class Saves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "harm")
        return x.mean(dim=[2, 3, 4])


class MapsFile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4]) + torch.from_file("harm", shared=True, size=1)


class SavesWhenLoaded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        torch.save(state[0], "harm")
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=[2, 3, 4])


def written(module: nn.Module, folder: Path) -> Path:
    path = folder / "network.pt"
    torch.jit.script(module).save(str(path))
    return path


def repacked(path: Path, changes: dict[str, bytes]) -> Path:
    """The archive with members replaced or added, by their names inside its folder."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    top = next(iter(members)).partition("/")[0]
    other = path.with_name("changed.pt")
    with zipfile.ZipFile(other, "w") as archive:
        for name, data in {**members, **{f"{top}/{inner}": data for inner, data in changes.items()}}.items():
            archive.writestr(name, data)
    return other


def code_of(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return next(archive.read(n).decode() for n in archive.namelist() if n.endswith(OWN_CODE))


def test_outputs_are_the_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    video = torch.rand(2, 3, 4, 8, 8)
    tiny = Tiny().eval()
    features = load_torchscript(written(tiny, tmp_path), CPU, "i3d:x")(video)
    assert torch.allclose(features, tiny(video), atol=1e-6) and features.shape == (2, 5)
    over_time = OverTime().eval()
    over_time.load_state_dict(tiny.state_dict())
    assert torch.allclose(load_torchscript(written(over_time, tmp_path), CPU, "i3d:x")(video), features, atol=1e-6)


def test_a_network_saved_in_training_is_evaluated(tmp_path: Path) -> None:
    network = load_torchscript(written(Tiny().train(), tmp_path), CPU, "i3d:x")
    video = torch.rand(2, 3, 4, 8, 8)
    with torch.no_grad():
        assert torch.allclose(network(video)[:1], network(video[:1]), atol=1e-6)  # no statistics of the batch


def test_options_of_the_common_archive_are_set(tmp_path: Path) -> None:
    network = load_torchscript(written(WithOptions(), tmp_path), CPU, "i3d:x")
    assert network(torch.rand(1, 3, 4, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize(
    ("module", "message"),
    [(Pair(), "gives a tuple"), (Number(), "one number a video"), (Images(), "does not take videos")],
)
def test_outputs_that_are_no_features(module: nn.Module, message: str, tmp_path: Path) -> None:
    network = load_torchscript(written(module, tmp_path), CPU, "i3d:x")
    with pytest.raises(UserError, match=message):
        network(torch.rand(2, 3, 4, 8, 8))


def test_operators_do_reach_files_where_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the search is for: plain torch.jit.load writes a file."""
    monkeypatch.chdir(tmp_path)
    torch.jit.load(written(SavesWhenLoaded(), tmp_path))
    assert Path("harm").exists()


@pytest.mark.parametrize("module", [Saves(), MapsFile(), SavesWhenLoaded()], ids=lambda m: type(m).__name__)
def test_archives_that_reach_files_are_not_loaded(
    module: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(module, tmp_path)
    (tmp_path / "harm").unlink(missing_ok=True)
    with pytest.raises(UserError, match=rf"is not loaded: network/{OWN_CODE} uses '(save|from_file)'"):
        load_torchscript(path, CPU, "i3d:x")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("torch.save(x, 'harm')", "'save'"),
        ("x.save('harm')", "'save'"),
        ("getattr(torch, 'sa' 've')(x, 'harm')", "'save'"),
        ("getattr(torch, 'sa\\x76e')(x, 'harm')", "'save'"),
        ("ops.aten.save(x, 'harm')", "'save'"),
        ("_0 = ops", "another name"),
        ("_0 = getattr(torch, 'x')", "another name"),
        ("ops.image.read_file('harm')", "'ops.image'"),
        ("ops . image . read_file('harm')", "'ops.image'"),
        ("rpc_sync('worker', x)", "'rpc_sync'"),
        ("_0 = __torch__.torch.classes.a.B()", "native classes"),
        ("_0 = __torch__.torch . classes.a.B()", "native classes"),
        ("_0 = __torch__", "another name"),
        ("_0 = 'é'", "cannot be searched"),
        ("_0 = (", "cannot be searched"),
    ],
)
def test_code_that_hides_what_it_does(line: str, message: str, tmp_path: Path) -> None:
    path = written(Tiny(), tmp_path)
    code = code_of(path)
    at = code.index("    net = self.net")
    changed = repacked(path, {OWN_CODE: f"{code[:at]}    {line}\n{code[at:]}".encode()})
    with pytest.raises(UserError, match=message):
        load_torchscript(changed, CPU, "i3d:x")
    assert not Path("harm").exists()


def test_code_under_another_spelling_is_searched_too(tmp_path: Path) -> None:
    path = repacked(written(Tiny(), tmp_path), {"CODE/more.PY": b"torch.save(1, 'harm')"})
    with pytest.raises(UserError, match="'save'"):
        load_torchscript(path, CPU, "i3d:x")
    path = repacked(written(Tiny(), tmp_path), {OWN_CODE.upper(): b"x = 1"})
    with pytest.raises(UserError, match="share a name"):
        load_torchscript(path, CPU, "i3d:x")
    path = repacked(written(Tiny(), tmp_path), {"../elsewhere/model.json": b"{}"})
    with pytest.raises(UserError, match="before 1.0"):
        load_torchscript(path, CPU, "i3d:x")


class Harm:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("harm",))


def test_pickles_in_an_archive_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for member in ("data.pkl", "constants.pkl"):
        path = repacked(written(Tiny(), tmp_path), {member: pickle.dumps(Harm(), protocol=2)})
        with pytest.raises(UserError, match="no TorchScript network that can be loaded"):
            load_torchscript(path, CPU, "i3d:x")
    assert not Path("harm").exists()


def test_pickled_weights_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    torch.save({"harm": Harm()}, path)
    with pytest.raises(UserError, match="holds pickled weights, not a TorchScript network"):
        load_torchscript(path, CPU, "i3d:x")
    assert not Path("harm").exists()


def test_damaged_archives(tmp_path: Path) -> None:
    whole = written(Tiny(), tmp_path).read_bytes()
    path = tmp_path / "damaged.pt"
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="no readable archive"):
            load_torchscript(path, CPU, "i3d:x")
    middle = whole.index(OWN_CODE.encode()) + 200
    path.write_bytes(whole[:middle] + b"\0" * 40 + whole[middle + 40 :])
    with pytest.raises(UserError, match="no readable archive"):  # its checksum
        load_torchscript(path, CPU, "i3d:x")
