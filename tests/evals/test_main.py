"""The command without lm-evaluation-harness."""

import sys

import pytest

from d3cli.evals.__main__ import main


def test_a_missing_harness_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        'error: lm-evaluation-harness is not installed\ninstall it: pip install "d3cli[eval]"\n'
    )
