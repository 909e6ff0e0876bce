"""The folder a page may see: the only place where a string from a page becomes a path.

Nothing outside the root is read or written, whatever a name says and wherever a symlink leads. The one exception is the
starter model, which lies in the installed package and is named by the one word `starter`.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from reelwright.types import UsageError, UserError
from reelwright.ui import catalogue
from reelwright.ui.catalogue import VIDEO_SUFFIXES, DataEntry, ModelEntry, OutputEntry, RecipeEntry
from reelwright.ui.probing import probe_upload

__all__ = ["DataEntry", "Kind", "ModelEntry", "OutputEntry", "VIDEO_SUFFIXES", "RecipeEntry", "Workspace"]

Kind = Literal["model", "run", "recipe", "video", "data", "file", "folder", "any"]

STARTER = "starter"
STARTER_FOLDER = Path(__file__).parents[1] / STARTER
PRIVATE = ".reelwright"
MAX_NAME_BYTES, MAX_TEXT_CHARACTERS, MAX_DEPTH = 200, 1000, 32
MAX_UPLOAD_BYTES = 512 * 2**20
_CHUNK = 1 << 20
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|clock\$|(com|lpt)[0-9])(\..*)?", re.IGNORECASE)
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are written with them
_WAY_OUT = "give a name inside the workspace, such as runs/first"


class Workspace:
    """A root folder and what is in it.

    `upload_folder` is where a server has to let its uploads arrive: `store_upload` takes files from nowhere else.
    """

    def __init__(self, root: Path, max_upload_bytes: int = MAX_UPLOAD_BYTES) -> None:
        """UsageError where the root is no folder or cannot be written to."""
        root = Path(root)
        if not root.is_dir() or not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise UsageError(f"--workspace {root}: not a folder that can be read and written; make it, or name another")
        self.root = root.resolve()
        self.max_upload_bytes = max_upload_bytes
        self.upload_folder = self.private_folder("incoming")

    # Names -> paths

    def resolve(self, text: str, kind: Kind, field: str = "") -> Path:
        """The real path that a page's text names; `field` (else `kind`) is the name a mistake is told under.

        Checked anew at every call, symlinks included, so call it where the path is used. `video`, `recipe`, `file`:
        a regular file; `data`: a folder; `run`: one with a recipe.yaml; `model`: a folder or a .safetensors file, or
        `starter`; `folder`: one that may not exist yet; `any`: a file or folder that may not either. UsageError for all
        else.
        """
        field = field or kind
        if kind == "model" and text == STARTER and STARTER_FOLDER.is_dir() and any(STARTER_FOLDER.iterdir()):
            return STARTER_FOLDER
        path = self._inside(self.root / _relative_name(text, field), text, field)
        wrong = _wrong_kind(path, kind)
        if wrong:
            raise UsageError(f"{field} = {_shown(text)}: {wrong}; {_WAY_OUT}")
        return path

    def relative(self, path: Path) -> str:
        """Name of a real path inside the workspace, what `resolve` takes; ValueError for one outside."""
        return path.relative_to(self.root).as_posix()

    def check_tree(self, path: Path, field: str) -> Path:
        """`path`, once no symlink anywhere in it leads out of the workspace. UsageError names the first that does."""
        pending, seen = [path], set()
        while pending:
            folder = pending.pop()
            if folder in seen or not folder.is_dir():
                continue
            seen.add(folder)
            for entry in _scan(folder):
                if entry.is_symlink():
                    pending.append(self._inside(Path(entry.path), str(path.name), field))
                elif entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
        return path

    def private_folder(self, *names: str) -> Path:
        """ROOT/.reelwright/NAME..., made where it is missing. UsageError where a symlink stands in its place."""
        folder = self.root
        for name in (PRIVATE, *names):
            folder = folder / name
            if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
                raise UsageError(f"{folder}: not a folder of its own; the page keeps its records there: remove it")
            folder.mkdir(exist_ok=True, mode=0o700)
        return folder

    def made_folder(self, name: str) -> Path:
        """ROOT/NAME (outputs, uploads), made where it is missing; UsageError where it leads out of the workspace."""
        folder = self._inside(self.root / name, name, name)
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder}: cannot be made a folder ({error.strerror}); move what is there away") from None
        return folder

    def read_text(self, path: Path, max_bytes: int = 1_000_000) -> str:
        """A small file's text. UserError where it lies outside the workspace, is no regular file, or is larger."""
        path = self._inside(path, path.name, "file")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                facts = os.fstat(file.fileno())
                if not stat.S_ISREG(facts.st_mode) or facts.st_size > max_bytes:
                    raise UserError(f"{path.name}: not a file of at most {max_bytes} bytes")
                return file.read(max_bytes).decode("utf-8", "replace")
        except OSError as error:
            raise UserError(f"{path.name}: cannot be read ({error.strerror})") from None

    def _inside(self, path: Path, text: str, field: str) -> Path:
        """`path` without symlinks, if it is the root's and none of the page's own records."""
        try:
            real = path.resolve()
            inner = real.relative_to(self.root).parts
        except (OSError, RuntimeError):  # a loop of symlinks, a name too long for the file system
            raise UsageError(f"{field} = {_shown(text)}: cannot be followed to a file; {_WAY_OUT}") from None
        except ValueError:
            raise UsageError(
                f"{field} = {_shown(text)}: leads out of the workspace; only what lies in it can be used from the "
                "page: copy it in, or start the page with a --workspace that holds it"
            ) from None
        if inner[:1] == (PRIVATE,):
            raise UsageError(f"{field} = {_shown(text)}: belongs to the page itself; {_WAY_OUT}")
        return real

    # What there is

    def runs(self) -> list[ModelEntry]:
        """Run directories, the last changed first."""
        return [entry for entry in self.models() if entry.kind == "run"]

    def models(self) -> list[ModelEntry]:
        """Runs and exports, the last changed first, then `starter` where it is installed."""
        found = catalogue.find_models(self)
        if STARTER_FOLDER.is_dir() and any(STARTER_FOLDER.iterdir()):
            found.append(catalogue.starter_entry(STARTER_FOLDER))
        return found

    def recipes(self) -> list[RecipeEntry]:
        """YAML files that are recipes (or nearly: `problem` says what is wrong), by name."""
        return catalogue.find_recipes(self)

    def data_folders(self) -> list[DataEntry]:
        """Folders that look like captioned clips, by name."""
        return catalogue.find_data(self)

    def outputs(self, limit: int = 200) -> list[OutputEntry]:
        """Videos made by the page or into outputs/, the newest first, each with the recipe beside it."""
        return catalogue.find_outputs(self, limit)

    # Uploads

    def store_upload(self, path: Path, name: str) -> Path:
        """Copy a file that arrived in `upload_folder` to uploads/, under a new name made of what is harmless in `name`.

        UsageError where it is too large, its suffix is not a video's, or its content does not decode as one (tried in
        a child process with limits). Nothing is ever overwritten.
        """
        suffix = PurePosixPath(str(name).replace("\\", "/")).suffix.lower()
        if suffix not in VIDEO_SUFFIXES:
            raise UsageError(f"upload {_shown(name)}: not a video file; give one of {', '.join(VIDEO_SUFFIXES)}")
        source = Path(path)
        if source.is_symlink() or not source.resolve().is_relative_to(self.upload_folder.resolve()):
            raise UsageError(f"upload {_shown(name)}: did not arrive by the page's upload")
        words = re.sub(r"[^a-z0-9]+", "-", str(name)[: -len(suffix)].lower())[-60:].strip("-")[:40] or "video"
        folder = self.made_folder("uploads")
        temporary = folder / f".{secrets.token_hex(8)}.part"
        try:
            self._copy(source, temporary, name)
            try:
                probe_upload(temporary)
            except UserError as error:
                raise UsageError(f"upload {_shown(name)}: {error}") from None
            while True:
                target = folder / f"{words}-{secrets.token_hex(4)}{suffix}"
                try:
                    target.touch(exist_ok=False)  # the name is ours from here on
                except FileExistsError:
                    continue
                temporary.replace(target)
                return target
        except OSError as error:
            raise UserError(f"upload {_shown(name)}: cannot be stored ({error.strerror}); is the disk full?") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _copy(self, source: Path, target: Path, name: str) -> None:
        """At most `max_upload_bytes`, counted while copying: what a file says of its size is not believed."""
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as reader, target.open("xb") as writer:
            if not stat.S_ISREG(os.fstat(reader.fileno()).st_mode):
                raise UsageError(f"upload {_shown(name)}: not a regular file")
            count = 0
            while chunk := reader.read(_CHUNK):
                count += len(chunk)
                if count > self.max_upload_bytes:
                    raise UsageError(
                        f"upload {_shown(name)}: larger than {self.max_upload_bytes >> 20} MiB; cut it shorter, or "
                        "copy it into the workspace by hand"
                    )
                writer.write(chunk)


def _relative_name(text: Any, field: str) -> PurePosixPath:
    """The text as a plain relative name. UsageError for anything that some program might take for something else.

    The same rules hold for the text's compatibility form (NFKC), in which full-width dots and slashes are plain ones.
    """
    if not isinstance(text, str):
        raise UsageError(f"{field}: a name is text, not {type(text).__name__}; {_WAY_OUT}")
    wrong = _wrong_name(text) or _wrong_name(unicodedata.normalize("NFKC", text))
    if wrong:
        raise UsageError(f"{field} = {_shown(text)}: {wrong}; {_WAY_OUT}")
    return PurePosixPath(text)


def _wrong_name(text: str) -> str:
    """The rule that a name breaks; '' for none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "not valid Unicode"
    if len(text) > MAX_TEXT_CHARACTERS or any(len(part.encode()) > MAX_NAME_BYTES for part in text.split("/")):
        return f"too long: at most {MAX_NAME_BYTES} bytes between two slashes and {MAX_TEXT_CHARACTERS} characters"
    if any(unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c not in _JOINERS for c in text):
        return "holds a control character"
    if "\\" in text:
        return "holds a backslash; folders are parted by /"
    if ":" in text:
        return "holds a colon: drives and addresses (C:, http:, file:) are no names of the workspace"
    if re.search(r"%[0-9a-fA-F]{2}", text):
        return "holds a percent encoding; write the character itself"
    if text.startswith("/"):
        return "an absolute path"
    parts = PurePosixPath(text).parts
    if not parts:
        return "empty"
    if len(parts) > MAX_DEPTH:
        return f"more than {MAX_DEPTH} folders deep"
    for part in parts:
        if part == "..":
            return "leads upwards (..)"
        if part.startswith((".", "~")):
            return "a part of it begins with . or ~"
        if part != part.strip() or part.endswith("."):
            return "a part of it begins or ends with a blank, or ends with a dot"
        if _DEVICES.fullmatch(part):
            return f"'{part}' is the name of a device on some systems"
    return ""


def _wrong_kind(path: Path, kind: Kind) -> str:
    """Why a path inside the workspace is not what was asked for; '' where it is."""
    try:
        mode = path.stat().st_mode
    except OSError:
        mode = None
    if mode is None:
        return "" if kind in ("folder", "any") else "there is no such file or folder"
    is_folder, is_file = stat.S_ISDIR(mode), stat.S_ISREG(mode)
    if not (is_folder or is_file):
        return "neither a regular file nor a folder"
    suffix = path.suffix.lower()
    if kind in ("data", "folder", "run") and not is_folder:
        return "not a folder"
    if kind in ("file", "video", "recipe") and not is_file:
        return "not a regular file"
    if kind == "run" and not (path / "recipe.yaml").is_file():
        return "not a run directory (it holds no recipe.yaml)"
    if kind == "video" and suffix not in VIDEO_SUFFIXES:
        return f"not a video file ({', '.join(VIDEO_SUFFIXES)})"
    if kind == "recipe" and suffix not in (".yaml", ".yml"):
        return "not a recipe (*.yaml)"
    if kind == "model" and is_file and suffix != ".safetensors":
        return "not a model: a run directory, an exported folder or a .safetensors file"
    return ""


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:  # gone meanwhile, or not ours to read
        return


def _shown(text: Any) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."
