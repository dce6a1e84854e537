"""The parts of torch and transformers that d3 leaves out are not missed, and come when needed."""

import subprocess
import sys

import pytest

from d3cli.depth.families import FAMILIES

LEFT_OUT = ("torch._dynamo.convert_frame", "torch.distributed.tensor", "scipy.optimize", "sympy")


def run(code: str) -> str:
    """Runs code in a process of its own; returns what it printed."""
    head = "import sys\nfrom d3cli.kernels.lean_imports import import_libraries\n"
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_model_class_is_imported_without_the_rest() -> None:
    printed = run(
        "import_libraries()\n"
        "from transformers import AutoModelForCausalLM\n"
        "from transformers.models.llama.modeling_llama import LlamaForCausalLM\n"
        f"print([name for name in {LEFT_OUT} if name in sys.modules])"
    )
    assert printed == "[]\n"


def test_what_was_left_out_comes_when_it_is_needed() -> None:
    run(
        "import_libraries()\n"
        "import torch, transformers\n"
        "from transformers.models.llama.modeling_llama import LlamaForCausalLM\n"
        "assert 'torch._dynamo.convert_frame' not in sys.modules\n"
        "assert torch.compile(lambda x: x + 1, backend='eager')(torch.zeros(1)).item() == 1\n"
        "assert 'torch._dynamo.convert_frame' in sys.modules\n"
        "assert transformers.models.gpt2.GPT2Config().model_type == 'gpt2'\n"
        "assert transformers.Qwen3Config().model_type == 'qwen3'\n"
    )


def test_a_program_that_has_imported_transformers_keeps_all_of_it() -> None:
    run(
        "import transformers, torch._dynamo\n"
        "before = dict(sys.modules)\n"
        "import_libraries()\n"
        "assert sys.modules['torch._dynamo'] is before['torch._dynamo']\n"
        "assert transformers.utils.is_torch_distributed_available()\n"
    )


@pytest.mark.slow
def test_all_families_load_and_run_without_the_rest() -> None:
    kinds = sorted(FAMILIES)
    run(
        "import_libraries()\n"
        "import torch\n"
        "from transformers import AutoConfig, CONFIG_MAPPING, AutoModelForCausalLM\n"
        f"for kind in {kinds}:\n"
        "    AutoModelForCausalLM._model_mapping[type(CONFIG_MAPPING[kind]())]\n"
        "import accelerate, bitsandbytes\n"
    )
