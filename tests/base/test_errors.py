"""Sentences that name settings."""

import pytest

from d3cli.base.errors import D3Error, Setting


@pytest.mark.parametrize(
    ("setting", "written"),
    [
        (Setting("dtype"), "dtype"),
        (Setting("dtype", "float32"), 'dtype="float32"'),
        (Setting("start", "20%"), 'start="20%"'),
        (Setting("alpha", "0.99"), "alpha=0.99"),
        (Setting("seed", "-1"), "seed=-1"),
        (Setting("raw", "True"), "raw=True"),
        (Setting("seed", "None"), "seed=None"),
    ],
)
def test_python_reads_a_setting_as_it_is_written(setting: Setting, written: str) -> None:
    assert D3Error("it fails", ("use ", setting)).hint == f"use {written}"
