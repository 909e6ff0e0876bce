"""No file we read can run code: the syntax tree of the whole source, searched for what would let one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "reelwright"
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SAFE_YAML_LOADERS = {"_Loader", "SafeLoader", "CSafeLoader"}
ALLOWED_TORCH_LOAD = "convert.py"  # in a limited child process
ALLOWED_JIT_LOAD = "torchscript.py"  # an archive's code is searched before it is loaded


def dangers(tree: ast.Module, file_name: str) -> list[str]:
    return [danger for node in ast.walk(tree) for danger in _dangers_of(node, file_name)]


def _dangers_of(node: ast.AST, file_name: str) -> list[str]:
    found = []
    if isinstance(node, ast.Import):
        found += [f"import {a.name}" for a in node.names if a.name.split(".")[0] in PICKLE_MODULES]
    if isinstance(node, ast.ImportFrom):
        module = (node.module or "").split(".")[0]
        names = {alias.name for alias in node.names}
        if module in PICKLE_MODULES or (module == "yaml" and names & {"load", "load_all", "unsafe_load", "full_load"}):
            found.append(f"from {node.module} import {', '.join(sorted(names))}")
        if module == "torch" and "load" in names:
            found.append("from torch import load")
    if isinstance(node, ast.Call):
        found += _dangers_of_call(node, ast.unparse(node.func), file_name)
    return found


def _dangers_of_call(node: ast.Call, name: str, file_name: str) -> list[str]:
    found = []
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen"):
        found.append(f"{name}()")
    loader = options.get("Loader") or (ast.unparse(node.args[1]) if len(node.args) > 1 else "")
    if name in ("yaml.load", "yaml.load_all") and loader.removeprefix("yaml.") not in SAFE_YAML_LOADERS:
        found.append(f"{name} with Loader {loader or 'of its own choice'}")
    if name in ("yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all"):
        found.append(name)
    for option in ("allow_pickle", "shell", "trust_remote_code"):
        if options.get(option, "False") != "False":
            found.append(f"{option}={options[option]}")
    if name == "torch.load" and not (file_name == ALLOWED_TORCH_LOAD and options.get("weights_only") == "True"):
        found.append("torch.load")
    if name in ("torch.jit.load", "jit.load") and file_name != ALLOWED_JIT_LOAD:
        found.append(name)
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_source_file_can_run_what_it_reads(path: Path) -> None:
    assert dangers(ast.parse(path.read_text(encoding="utf-8")), path.name) == []


def test_our_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from reelwright import config

    assert issubclass(config._Loader, yaml.SafeLoader)


@pytest.mark.parametrize(
    "code",
    [
        "eval('1')", "exec(text)", "import pickle", "import pickle as p", "from pickle import loads", "import dill.x",
        "yaml.load(text)", "yaml.load(text, yaml.Loader)", "yaml.load(text, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(text)", "from yaml import load", "np.load(f, allow_pickle=True)", "run(c, shell=True)",
        "torch.load(f)", "torch.load(f, weights_only=True)", "from torch import load", "torch.jit.load(f)",
        "os.system('ls')", "part.from_pretrained(m, trust_remote_code=flag)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(code: str) -> None:
    assert dangers(ast.parse(code), "train.py")


@pytest.mark.parametrize(
    "code", ["model.eval()", "yaml.load(t, Loader=_Loader)", "np.load(f, allow_pickle=False)", "re.compile('x')"]
)
def test_the_search_passes_what_is_harmless(code: str) -> None:
    assert dangers(ast.parse(code), "train.py") == []
    assert dangers(ast.parse("torch.load(f, weights_only=True)"), ALLOWED_TORCH_LOAD) == []
