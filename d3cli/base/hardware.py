"""The names of this machine and its software."""

import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from d3cli.base.errors import D3Error

# Bytes that torch, transformers and their imports need with the smallest model. With less, OpenBLAS
# hangs while it is imported, and other libraries fail with messages that blame the model.
MIN_ADDRESS_SPACE = 1_200_000_000
# torch with CUDA maps so much as soon as it is imported, also without a GPU. With less, the process
# is aborted.
MIN_ADDRESS_SPACE_WITH_CUDA = 3_500_000_000

PACKAGES = ("d3cli", "torch", "transformers", "bitsandbytes")


def check_address_space() -> None:
    """Refuses a limit on address space (``ulimit -v``) that is too low for the imports.

    Raises:
        D3Error: with both numbers.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    has_cuda = _torch_has_cuda()
    least = MIN_ADDRESS_SPACE_WITH_CUDA if has_cuda else MIN_ADDRESS_SPACE
    if limit < least:
        why = ", since this torch was built with CUDA" if has_cuda else ""
        raise D3Error(
            f"this process may use {limit / 1e6:,.0f} MB of address space, but d3 needs "
            f"{least / 1e6:,.0f} MB with the smallest model{why}",
            "raise the limit: ulimit -v unlimited",
        )


def _torch_has_cuda() -> bool:
    """Whether torch was built with CUDA; looks at its files, since importing it takes the space."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return False
    return (Path(torch.origin).parent / "lib" / "libtorch_cuda.so").exists()


def versions() -> dict[str, str | None]:
    """The versions of d3, its main dependencies and Python; None for one that is not installed."""
    return {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}


def system() -> str:
    """The operating system."""
    return platform.platform()


def processor_name() -> str:
    """The processor's name. On Linux it is in a file that `platform` does not read."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
