"""What this machine and its software are, by name."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from d3cli.base.errors import D3Error

# Of torch, transformers and what they import, with the smallest model. With less, OpenBLAS was seen
# to try for ever while it is imported, and others to end with words that blame the model.
LEAST_ADDRESS_SPACE = 1_200_000_000

PACKAGES = ("d3cli", "torch", "transformers", "bitsandbytes")


def check_address_space() -> None:
    """Refuses a limit on address space (``ulimit -v``) that the imports alone exceed.

    Raises:
        D3Error: with both numbers.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < LEAST_ADDRESS_SPACE:
        raise D3Error(
            f"this process may use {limit / 1e6:,.0f} MB of address space, and d3 needs "
            f"{LEAST_ADDRESS_SPACE / 1e6:,.0f} MB with the smallest model",
            "raise the limit: ulimit -v unlimited",
        )


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
