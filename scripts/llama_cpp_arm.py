"""Decodes with llama.cpp through the low-level interface of llama-cpp-python.

    python scripts/llama_cpp_arm.py FILE.gguf --threads 2               # milliseconds a token
    python scripts/llama_cpp_arm.py FILE.gguf --threads 2 --extra-buffers

Tokens are forced: each goes through `llama_decode`, and nothing is sampled. llama.cpp computes with
OpenMP. Imported after torch it uses torch's own copy of it, and so the same threads, which wait
actively for 3 to 5 ms after a product and then sleep.

llama.cpp can copy weights into extra buffers: for AMX, or reordered for wide vector instructions.
The AMX buffers end some builds with a segmentation fault, so they are tried in a process of their
own first (`works`). llama-cpp-python 0.3.36, built by pip on an Intel processor with AMX, is one.
"""

import argparse
import ctypes
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

CONTEXT = 512  # tokens
TRIED = 8  # tokens that a trial decodes


def installed_version() -> str | None:
    """The version of llama-cpp-python; None if it is not installed."""
    try:
        return version("llama_cpp_python")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class LlamaFile:
    """A GGUF file for llama.cpp.

    Attributes:
        name: what to call it in a table.
        extra_buffers: whether llama.cpp copies weights into the order that its kernels like best.
    """

    name: str
    path: str
    extra_buffers: bool


class LlamaCpp:
    """A GGUF file in llama.cpp, with a prompt in its KV cache.

    Raises:
        RuntimeError: llama.cpp cannot load the file or read the prompt.
    """

    def __init__(self, file: LlamaFile, prompt: Sequence[int], threads: int) -> None:
        self._lib = library()
        settings = self._lib.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = file.extra_buffers
        self._model = self._lib.llama_model_load_from_file(file.path.encode(), settings)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {file.path}")
        context = self._lib.llama_context_default_params()
        context.n_ctx = context.n_batch = CONTEXT
        context.n_threads = context.n_threads_batch = threads
        self._context = self._lib.llama_init_from_model(self._model, context)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context for {file.path}")
        self._prompt_length = len(prompt)
        self.decode(prompt)

    def decode(self, ids: Sequence[int]) -> Any:
        """Reads tokens after those in the cache; returns a pointer to the last one's logits."""
        tokens = (self._lib.llama_token * len(ids))(*ids)
        batch = self._lib.llama_batch_get_one(tokens, len(ids))
        status = self._lib.llama_decode(self._context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        return self._lib.llama_get_logits_ith(self._context, -1)

    def seconds_per_token(self, ids: Sequence[int]) -> float:
        """Decodes tokens one by one after the prompt, and takes them back."""
        began = time.perf_counter()
        for token in ids:
            self.decode([token])
        seconds = time.perf_counter() - began
        memory = self._lib.llama_get_memory(self._context)
        self._lib.llama_memory_seq_rm(memory, 0, self._prompt_length, -1)
        return seconds / len(ids)


def library() -> Any:
    """The package's module of C functions, silenced: its log would fill the screen."""
    import llama_cpp.llama_cpp as lib

    if not hasattr(library, "silence"):
        # Kept, since C holds no reference to it.
        library.silence = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(library.silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
    return lib


def quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    """Quantizes a GGUF file as llama.cpp itself does; `kind` is a name such as "Q4_K_M".

    Raises:
        RuntimeError: llama.cpp cannot do it.
    """
    lib = library()
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = getattr(lib, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.nthread = threads
    part = target.with_suffix(".part")
    if lib.llama_model_quantize(str(source).encode(), str(part).encode(), settings):
        raise RuntimeError(f"llama.cpp cannot quantize {source} to {kind}")
    part.rename(target)


def works(file: LlamaFile) -> bool:
    """Whether llama.cpp decodes a file here: in another process, since it may crash."""
    options = ["--extra-buffers"] if file.extra_buffers else []
    command = [sys.executable, __file__, file.path, "--threads", "1", *options]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--extra-buffers", action="store_true")
    asked = parser.parse_args()
    file = LlamaFile(asked.file, asked.file, asked.extra_buffers)
    model = LlamaCpp(file, range(100, 132), asked.threads)
    times = [model.seconds_per_token(range(200, 200 + TRIED)) for _ in range(3)]
    print(f"{1000 * median(times):.1f} ms a token")


if __name__ == "__main__":
    main()
