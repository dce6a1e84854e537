"""Measures decoding: d3 beside Hugging Face's generate, llama.cpp and the memory's bandwidth.

    make bench                                           # the Llama-3.2-1B shape, 20 minutes
    python scripts/bench_decode.py --tier native,avx2    # as well as on a processor with AVX2 only
    python scripts/bench_decode.py --model FILE.gguf     # one file in all three programs
    python scripts/bench_decode.py --model demo --tokens 32
    python scripts/bench_decode.py --read RESULTS.json   # the tables of an earlier run

Speed does not depend on the weights' values, so a shape gets random ones, in files that are made
once, in build/. A kernel can be fast in one process and slow in the next. So each tier is measured
in several processes, one after the other, each with all arms (`bench_arms.py`). Ratios are taken
within half a round and their median within a process; the tables show the median over processes
and, in brackets, the least and the greatest (`bench_report.py`).

A tier is a set of the processor's instructions, chosen by two environment variables that torch and
oneDNN read; bitsandbytes ignores them. llama.cpp, which is compiled for one processor, runs in the
tier "native" only, where `pip install llama-cpp-python` was done.

- `HF`: transformers' own loop, with its dynamic and its static cache, and compiled (--compile). Its
  times include the choice of the next token; all others read forced tokens and choose none.
- `products alone`: one product for each weight matrix of a step at full depth, nothing else.
- `alpha 0.99 over 256 tokens`: steps spread over a reply, at their own depths; compared with full
  depth at the same steps.
- `llama.cpp`: `llama_decode` of one token after the other (`llama_cpp_arm.py`).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import bench_report
import llama_cpp_arm
from llama_cpp_arm import LlamaFile

BUILD = Path(__file__).parent.parent / "build"
TORCH_LIMIT, ONEDNN_LIMIT = "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"
NATIVE = "native"
# The environment of each tier, and the features that a processor must have for it.
TIERS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    NATIVE: ({}, ()),
    "avx512": (
        {TORCH_LIMIT: "avx512", ONEDNN_LIMIT: "AVX512_CORE_VNNI"},
        ("avx512_f", "avx512_vnni"),
    ),
    "avx2": ({TORCH_LIMIT: "avx2", ONEDNN_LIMIT: "AVX2"}, ("avx2",)),
}


def words(text: str) -> list[str]:
    """The words of a list with commas."""
    return [word for word in text.split(",") if word]


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b", help="a name in scripts/shapes.py")
    parser.add_argument("--model", help="a directory, a GGUF file or demo, instead of a shape")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--quantization",
        type=words,
        default=["int8", "int4"],
        help='list of d3\'s other arms: int8, int4, nested, bnb-4bit; "" for none',
    )
    parser.add_argument(
        "--llama-cpp",
        type=words,
        default=["Q4_0", "Q4_K_M", "Q8_0"],
        metavar="KINDS",
        help='list of the files that llama.cpp makes of a shape and decodes; "" for none',
    )
    parser.add_argument("--compile", action="store_true", help="HF with torch.compile too")
    parser.add_argument("--tier", action="append", type=words, help="native, avx512, avx2")
    parser.add_argument("--processes", type=int, default=5, help="for each tier")
    parser.add_argument("--rounds", type=int, default=5, help="in each process")
    parser.add_argument("--tokens", type=int, default=8, help="per arm and half round")
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument("--json", type=Path, help="write all samples to this file")
    parser.add_argument("--read", type=Path, metavar="JSON", help="show an earlier run")
    asked = parser.parse_args(argv)
    asked.tier = [tier for tiers in asked.tier or [[NATIVE]] for tier in tiers]
    if unknown := set(asked.tier) - set(TIERS):
        parser.error(f"there is no tier {min(unknown)}: use {', '.join(TIERS)}")
    return asked


def made_checkpoint(shape: str) -> Path:
    """The directory of a shape's random checkpoint, made if it is not there."""
    from shapes import SHAPES, save_checkpoint

    if shape not in SHAPES:
        raise SystemExit(f"there is no shape {shape}: use {', '.join(SHAPES)}")
    path = BUILD / shape
    if not (path / "tokenizer.json").exists():
        print(f"making {path}", file=sys.stderr)
        save_checkpoint(SHAPES[shape], path)
    return path


def made_gguf(shape: str, kinds: list[str]) -> dict[str, Path]:
    """A shape's random weights as GGUF files by kind, quantized by llama.cpp if not there."""
    from shapes import SHAPES, save_gguf

    files = {kind: BUILD / f"{shape}-{kind}.gguf" for kind in kinds}
    missing = {kind: path for kind, path in files.items() if not path.exists()}
    if missing:
        source = BUILD / f"{shape}-BF16.gguf"
        print(f"making {', '.join(map(str, missing.values()))}", file=sys.stderr)
        BUILD.mkdir(exist_ok=True)
        save_gguf(SHAPES[shape], source, "BF16")
        for kind, path in missing.items():
            llama_cpp_arm.quantize(source, path, kind, os.cpu_count() or 1)
        source.unlink()
    return files


def llama_files(asked: argparse.Namespace) -> list[LlamaFile]:
    """What llama.cpp can decode here: each file, and again with extra buffers if that works."""
    if not asked.llama_cpp or NATIVE not in asked.tier:
        return []
    if llama_cpp_arm.installed_version() is None:
        print("llama.cpp is not measured: pip install llama-cpp-python", file=sys.stderr)
        return []
    if asked.model is None:
        files = made_gguf(asked.shape, asked.llama_cpp)
    elif Path(asked.model).is_file():
        files = {gguf_type(asked.model): Path(asked.model)}
    else:
        print("llama.cpp is not measured: it needs a GGUF file", file=sys.stderr)
        return []
    found = []
    for kind, path in files.items():
        plain = LlamaFile(f"llama.cpp {kind}", str(path), extra_buffers=False)
        reordered = LlamaFile(f"{plain.name}, extra buffers", str(path), extra_buffers=True)
        for file in (plain, reordered):
            if llama_cpp_arm.works(file):
                found.append(file)
            else:
                print(f"{file.name} is not measured: it fails here", file=sys.stderr)
    return found


def gguf_type(model: str) -> str:
    """The type of most weights of a GGUF file."""
    from d3cli.files.names import find_model

    gguf = find_model(model).gguf
    if gguf is None:
        raise SystemExit(f"{model} is a file, but not GGUF")
    return next(iter(gguf.types))


def run_process(settings: dict[str, Any], tier: str) -> dict[str, Any]:
    """Measures in a new process; returns what `bench_arms.measure` does, and the tier."""
    environment = {k: v for k, v in os.environ.items() if k not in (TORCH_LIMIT, ONEDNN_LIMIT)}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, "--worker", tier, json.dumps(settings), file.name]
        code = subprocess.run(command, env=environment | TIERS[tier][0]).returncode
        if code:
            raise SystemExit(f"the process of the tier {tier} ended with exit code {code}")
        return {"tier": tier} | json.loads(Path(file.name).read_text())


def work(tier: str, settings: str, target: str) -> None:
    """In the child: measures, and writes the result."""
    import torch
    from bench_arms import Settings, measure

    features = torch.cpu.get_capabilities()
    if missing := [name for name in TIERS[tier][1] if not features.get(name)]:
        raise SystemExit(f"this processor has no {missing[0]}, which the tier {tier} needs")
    fields = json.loads(settings)
    fields["llama_files"] = [LlamaFile(**file) for file in fields["llama_files"]]
    Path(target).write_text(json.dumps(measure(Settings(**fields))))


def main(argv: Sequence[str]) -> None:
    if argv[:1] == ["--worker"]:
        work(*argv[1:])
        return
    asked = arguments(argv)
    if asked.read:
        print(bench_report.report(json.loads(asked.read.read_text())["processes"]))
        return
    model = asked.model or str(made_checkpoint(asked.shape))
    files = llama_files(asked)
    settings = {
        "model": model,
        "dtype": asked.dtype,
        "quantizations": asked.quantization,
        "compiled": asked.compile,
        "tokens": asked.tokens,
        "rounds": asked.rounds,
        "threads": asked.threads,
    }
    done: list[dict[str, Any]] = []
    for number in range(asked.processes):
        for tier in asked.tier:
            print(f"{tier}, process {number + 1} of {asked.processes}", file=sys.stderr)
            llama = list(map(asdict, files)) if tier == NATIVE else []
            done.append(run_process(settings | {"llama_files": llama}, tier))
            if asked.json:  # after each process, so that an interrupted run is not lost
                asked.json.write_text(json.dumps({"settings": settings, "processes": done}))
    print(bench_report.report(done))


if __name__ == "__main__":
    main(sys.argv[1:])
