"""What this machine and its software are, by name."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("d3cli", "torch", "transformers", "bitsandbytes")


def versions() -> dict[str, str | None]:
    """Of d3, of what its results depend on, and of Python; None where it is not installed."""
    return {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}


def system() -> str:
    """The operating system."""
    return platform.platform()


def processor_name() -> str:
    """The name that the system gives; Linux keeps it where `platform` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
