"""What loading a model changes in the whole process, in one place.

torch, oneDNN, glibc, transformers and bitsandbytes keep some settings per process, not per model:

| function               | what changes                                | for how long |
|------------------------|---------------------------------------------|--------------|
| `use_threads`          | the threads of torch                        | for good     |
| `limit_kernel_caches`  | oneDNN's caches, by environment variables   | for good     |
| `use_one_arena`        | from where glibc gives memory to threads    | for good     |
| `return_freed_memory`  | when glibc returns memory to the system     | for good     |
| `import_bitsandbytes`  | hides the package `kernels`                 | the import   |
| `prepare_quantization` | the two above; d3's code rounds to NF4      | for good     |
| `no_progress_bar`      | transformers' progress bar                  | a context    |
| `silent_stderr`        | stderr of the process                       | a context    |
| `quiet_libraries`      | what libraries print; only the CLI calls it | for good     |
| `stay_offline`         | the hub's network; only the CLI calls it    | for good     |

Knows nothing of models. Imports torch and transformers only inside functions, since the last two
must come before these imports.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from d3cli.base.errors import Setting, UsageError

MOST_THREADS = 1024  # torch aborts the process at some larger number

# oneDNN keeps the kernels that it compiles for each shape, and torch's bridge to oneDNN keeps them
# once more: 1.6 MB for each new length of a prompt (measured on the built-in model), up to 1,024
# kernels each. The same length seldom comes again.
KERNEL_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
KERNELS_KEPT = 128

MMAP_THRESHOLD, ARENA_MAX = -3, -8  # the numbers of these parameters of glibc's mallopt


def prepare_process(threads: int | None = None) -> None:
    """Sets the threads, limits oneDNN's caches, and lets all threads share one arena of malloc.

    Args:
        threads: CPU threads for torch; None leaves torch's choice.

    Raises:
        UsageError: the number of threads is out of range.
    """
    if threads is not None:
        use_threads(threads)
    limit_kernel_caches()
    use_one_arena()


def prepare_quantization(*, in_4_bits_on_cpu: bool) -> None:
    """Prepares the process to quantize weights with bitsandbytes."""
    import_bitsandbytes()
    return_freed_memory()
    if in_4_bits_on_cpu:
        from d3cli.kernels.nf4 import register_rounding

        register_rounding()


def use_threads(threads: int) -> None:
    """Sets the number of CPU threads that torch computes with.

    Raises:
        UsageError: the number is out of range.
    """
    import torch

    if not 1 <= threads <= MOST_THREADS:
        raise UsageError(
            (Setting("threads"), f" is {threads}"), f"it must be between 1 and {MOST_THREADS}"
        )
    torch.set_num_threads(threads)


def limit_kernel_caches() -> None:
    """Keeps oneDNN's caches small. The user's own setting stays."""
    for cache in KERNEL_CACHES:
        os.environ.setdefault(cache, str(KERNELS_KEPT))


def use_one_arena() -> None:
    """Lets threads that start from now on share malloc's main arena, or one that there is already.

    Weights are read and quantized by threads that end soon. glibc gives each an arena of its own,
    where what outlives them leaves gaps that are never returned: 20 MB after the built-in model was
    loaded in all forms, 2 MB more each further time. The user's own MALLOC_ARENA_MAX stays.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        set_malloc_parameter(ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Returns large tensors to the system as soon as they are freed, from now on.

    Without this, glibc keeps freed blocks of up to 32 MB for later use. What converting and
    multiplying quantized weights frees adds up to several hundred megabytes.
    """
    set_malloc_parameter(MMAP_THRESHOLD, 1 << 20)


def set_malloc_parameter(number: int, value: int) -> None:
    """Calls glibc's mallopt."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(number, value)


def trim_memory() -> None:
    """Returns to the system what glibc keeps of memory that is free now."""
    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def import_bitsandbytes() -> None:
    """Imports bitsandbytes without the compiled code that it would fetch from the hub.

    Where the package `kernels` is installed, bitsandbytes downloads a CPU kernel while it is
    imported, and runs it. d3 never runs downloaded code. Its results and its memory were tested
    with the kernels that bitsandbytes ships.
    """
    known = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment] # importing it now fails
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would report that failure
    try:
        import bitsandbytes  # noqa: F401
    finally:
        logger.setLevel(level)
        if known is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = known


def quiet_libraries(*, progress_bars: bool) -> None:
    """Silences transformers and the hub on stderr. They read this once, when imported."""
    # Errors too: they quote a stranger's config unescaped, and d3 gets them as exceptions as well.
    os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns about every cast
    if not progress_bars:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def stay_offline() -> None:
    """Keeps huggingface_hub off the network. It reads this once, when imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Hides transformers' progress bar, since the library prints nothing."""
    from transformers.utils import logging as hf_logging

    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discards what the process writes to stderr.

    Rust code that panics writes there itself, before Python can catch the exception.
    """
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # there is no stderr
        yield
        return
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
