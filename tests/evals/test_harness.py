"""The model "d3" of lm-evaluation-harness, by the harness' own interface."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from d3cli.base.errors import UsageError
from tests.conftest import BUILTIN_PATH

pytest.importorskip(
    "lm_eval", reason='lm-evaluation-harness is not installed: pip install "d3cli[eval]"'
)

HERE = {"pretrained": "demo", "dtype": "float32", "device": "cpu", "threads": 1, "batch_size": 2}
PAIRS = [
    ("What falls from the sky?", " Rain falls from the sky in small drops."),
    ("Hello", " to all of you in the village"),
    ("", "Once there was a fox."),
]


def lm(**given: Any) -> Any:
    harness = importlib.import_module("d3cli.evals.harness")
    return harness.D3LM.create_from_arg_obj(given, HERE)


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def full() -> Any:
    return lm(alpha="off")


@pytest.fixture(scope="module")
def decayed() -> Any:
    return lm(alpha=0.9, start=0)


@pytest.fixture(scope="module")
def hf() -> Any:
    from lm_eval.api.registry import get_model

    arguments = {"pretrained": str(BUILTIN_PATH), "dtype": "float32", "device": "cpu"}
    return get_model("hf").create_from_arg_obj(arguments, {"batch_size": 2})


def test_full_depth_scores_as_the_harness_own_model(full: Any, hf: Any) -> None:
    ours = full.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    theirs = hf.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    assert [one[0] for one in ours] == pytest.approx([one[0] for one in theirs], abs=1e-4)
    assert [one[1] for one in ours] == [one[1] for one in theirs]


def test_whole_texts_longer_than_the_context_score_alike(full: Any, hf: Any) -> None:
    text = "The fox met the owl at the old mill. " * 140
    assert len(full.tok_encode(text)) > full.max_length == hf.max_length
    texts = requests((text,), ("A short text.",))
    ours = full.loglikelihood_rolling(texts, disable_tqdm=True)
    theirs = hf.loglikelihood_rolling(texts, disable_tqdm=True)
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-4)


def test_replies_at_full_depth_are_the_harness_own(full: Any, hf: Any) -> None:
    given = {"until": ["."], "max_gen_toks": 12}
    asked = requests(*((context or "Once", dict(given)) for context, _ in PAIRS))
    assert full.generate_until(asked, disable_tqdm=True) == hf.generate_until(
        asked, disable_tqdm=True
    )


def test_decay_changes_the_scores(full: Any, decayed: Any) -> None:
    """Else the harness would measure the undecayed model."""
    ours = decayed.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    theirs = full.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    assert all(abs(a[0] - b[0]) > 1e-3 for a, b in zip(ours, theirs, strict=True))
    [ours] = decayed.loglikelihood_rolling(requests(("Once there was a fox.",)), disable_tqdm=True)
    [theirs] = full.loglikelihood_rolling(requests(("Once there was a fox.",)), disable_tqdm=True)
    assert abs(ours - theirs) > 1e-3


def test_the_results_say_how_deep_the_model_ran(full: Any, decayed: Any) -> None:
    for model in (full, decayed):
        model.loglikelihood(requests(*PAIRS), disable_tqdm=True)
        model.generate_until(requests(("Tell me", {"max_gen_toks": 9})), disable_tqdm=True)
    at_full, below = full.get_model_info(), decayed.get_model_info()
    assert at_full["d3_likelihood_mean_layers"] == at_full["d3_reply_mean_layers"] == 16
    assert below["d3_likelihood_mean_layers"] < 16 and below["d3_reply_mean_layers"] < 16
    assert below["d3_schedule"]["alpha"] == 0.9 and below["d3_schedule"]["source"] == "flags"


def test_repeats_of_a_sampled_reply_differ_and_runs_do_not() -> None:
    given = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    asked = requests(*[("Tell me a story about", dict(given))] * 3)
    first, again = (lm().generate_until(asked, disable_tqdm=True) for _ in range(2))
    assert first == again
    assert len(set(first)) > 1


def test_chat_templates_are_rendered_as_text(full: Any, hf: Any) -> None:
    messages = [{"role": "user", "content": "What is 3 + 4?"}]
    assert full.apply_chat_template(messages) == hf.apply_chat_template(messages)
    begun = [*messages, {"role": "assistant", "content": "The answer is"}]
    rendered = full.apply_chat_template(begun, add_generation_prompt=False)
    assert rendered == full.apply_chat_template(messages) + "The answer is"


def test_a_text_without_a_prompt_is_not_scored_as_if_it_were_full_depth(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.symlink_to(BUILTIN_PATH)  # another name, so that nothing is calibrated
    model = lm(pretrained=str(copy), alpha=0.9, quantization="none")
    with pytest.raises(UsageError, match="no prompt that could decide"):
        model.loglikelihood_rolling(requests(("Once.",)), disable_tqdm=True)


def test_replies_longer_than_the_context_are_refused(full: Any) -> None:
    asked = requests(("Hello", {"max_gen_toks": full.max_length}))
    with pytest.raises(UsageError, match="context holds"):
        full.generate_until(asked, disable_tqdm=True)


@pytest.mark.slow  # the harness lists all of its own tasks first
def test_the_command_runs_tasks_of_local_files(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"question": "What is 3 + 4?", "choices": ["The answer is 7.", "A fox."], "answer": 0}\n'
    )
    (tmp_path / "task.yaml").write_text(
        f"""task: local
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    command = [
        sys.executable,
        "-m",
        "d3cli.evals",
        "--model",
        "d3",
        "--include_path",
        str(tmp_path),
    ]
    arguments = ["--tasks", "local", "--model_args"]
    done = subprocess.run(
        [*command, *arguments, "pretrained=demo,alpha=0.95"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "|local|" in done.stdout and "alpha': 0.95" in done.stdout
    wrong = subprocess.run(
        [*command, *arguments, "pretrained=demo,alpha=2"], capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert "error: alpha is 2" in wrong.stderr and "Traceback" not in wrong.stderr
