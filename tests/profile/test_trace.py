"""Traces on disk: what is written can be read, and errors say where a file is damaged."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d3cli.base.errors import TraceError
from d3cli.cli.profile.against import against_report
from d3cli.cli.profile.tables import csv_text, report
from d3cli.depth.schedule import DepthSchedule
from d3cli.profile.html.page import _reply
from d3cli.profile.sentences import sentences
from d3cli.profile.summary import summarize, with_figures
from d3cli.profile.trace import TokenTrace, Trace
from d3cli.profile.trace_file import parse_trace, read_trace, to_json
from tests.families import sublayers, tiny
from tests.traces import (
    as_schema_1,
    hostile_trace,
    lossless_trace,
    made_lossless_trace,
    made_trace,
    nested_trace,
    profile,
    whole_trace,
)

DOCS = Path(__file__).parents[2] / "docs" / "trace.md"
RECORDED = Path(__file__).parents[1] / "data" / "v0.1.0" / "trace.json"


def written(trace: Trace) -> dict[str, Any]:
    return json.loads(json.dumps(with_figures(trace)))


def read(data: object) -> Trace:
    return parse_trace(json.dumps(data).encode(), "t.json")


def put(data: Any, path: tuple[Any, ...], value: object) -> None:
    """Puts a value at a path of keys and indices."""
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


def test_what_is_written_can_be_read() -> None:
    for trace in (whole_trace(), lossless_trace(), hostile_trace(), made_trace([4, 3], [1.0])):
        assert read(written(trace)) == trace


def test_a_large_nested_model_can_be_read() -> None:
    """All units of 126 layers of nine gigabytes each, at full depth and one by one."""
    low = [f"{layer}.{part}.lo" for layer in range(126) for part in ("attn", "mlp")]
    order = (*low, *(name.removesuffix(".lo") for name in low[2:-2]))
    trace = nested_trace(126, order, scale=900_000_000)
    assert trace.model.layer_weights > 2**31
    assert read(written(trace)) == trace
    assert len(trace.replies[0].tokens) == 501
    assert report(trace, 80)


def test_figures_are_computed_from_the_record() -> None:
    data = written(whole_trace())
    depths = [token["depth"] for token in data["replies"][0]["tokens"]][1:]
    stats = data["replies"][0]["stats"]
    assert stats["mean_depth"] == pytest.approx(sum(depths) / len(depths))
    assert stats["layer_ratio"] == pytest.approx(16 * len(depths) / sum(depths))
    assert data["totals"]["tokens"] == sum(r["stats"]["tokens"] for r in data["replies"])
    data["totals"] = {"tokens": "nonsense"}
    assert read(data) == whole_trace()  # they are not read back


def test_every_field_is_documented() -> None:
    text = DOCS.read_text(encoding="utf-8")
    names: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            names.update(name for name in value if name.isidentifier())
            for one in value.values():
                collect(one)
        elif isinstance(value, list):
            for one in value[:1]:
                collect(one)

    for data in (written(whole_trace()), written(lossless_trace())):
        del data["versions"], data["model"]["kernels"]  # their keys are not fields
        collect(data)
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing


def test_unknown_fields_are_ignored() -> None:
    data = written(whole_trace())
    data["more"] = data["replies"][0]["tokens"][0]["more"] = {"x": [1]}
    assert read(data) == whole_trace()


def test_a_newer_schema_is_refused() -> None:
    data = written(whole_trace()) | {"schema": 4, "replies": "another form altogether"}
    with pytest.raises(TraceError, match=r"t\.json was written by a newer d3 \(schema 4"):
        read(data)


class TestSchema1:
    """Traces of 0.1.0 have no `bytes_read`; it follows from the schedule."""

    def test_it_reads_as_the_same_trace(self) -> None:
        for trace in (whole_trace(), made_trace([4, 3, 2], [1.0, 2.0])):
            assert read(as_schema_1(written(trace))) == trace

    def test_sublayers_save_their_own_bytes(self) -> None:
        schedule = DepthSchedule(4, 0.5, 0, 1, 1, ("1.attn", "2.mlp"), (0.4, 0.6))
        data = as_schema_1(written(made_trace([4, 3, 2], [1.0, 2.0])))
        tokens = read(data | {"schedule": schedule.to_json()}).replies[0].tokens
        assert [token.bytes_read for token in tokens] == [60, 56, 50]

    def test_a_trace_of_0_1_0_keeps_its_figures(self) -> None:
        trace = read_trace(RECORDED)
        assert trace.schema == 3
        before = json.loads(RECORDED.read_text())
        assert as_schema_1(written(trace)) == before

    @pytest.mark.parametrize(
        ("path", "value", "says"),
        [
            (("replies", 0, "tokens", 1, "dropped_units"), 3, "drops 3 of 2 units"),
            (("replies", 0, "tokens", 1, "dropped_units"), None, "dropped_units"),
            (("replies", 0, "tokens", 1, "ms"), "slow", r"tokens\[1\]\.ms"),
            (("replies", 0, "tokens"), None, "tokens"),
            (("model", "layer_bytes"), [[1, 2, 3]], "one entry for each layer"),
            (("schedule",), {}, "damaged"),
        ],
    )
    def test_damage_is_named(self, path: tuple[Any, ...], value: object, says: str) -> None:
        data: Any = as_schema_1(written(made_trace([4, 3], [1.0])))
        put(data, path, value)
        with pytest.raises(TraceError, match=says):
            read(data)


def test_bytes_are_added_up_as_recorded() -> None:
    """Figures use `bytes_read`, not the schedule."""
    made = made_trace([4, 3, 3], [1.0, 1.0])
    [reply] = made.replies
    first, second, third = reply.tokens
    tokens = (first, second, replace(third, bytes_read=25, dropped_units=None))
    trace = read(written(replace(made, replies=(replace(reply, tokens=tokens),))))
    found = summarize(trace, trace.replies)
    assert found.byte_ratio == 2 * 60 / 75
    assert found.byte_ratio_net == 2 * 60 / 135
    assert csv_text(trace).splitlines()[-1].endswith(",25,,,")


@pytest.mark.parametrize(
    ("step", "changes", "says"),
    [
        (0, {"bytes_read": 50}, "step 0 is 50, but the prefill reads all 60"),
        (1, {"bytes_read": 0}, "step 1 is 0, but with dropped_units 1 it must be 50"),
        (1, {"bytes_read": 60}, "it must be 50"),
        (1, {"bytes_read": 19, "dropped_units": None}, "it must be between 20 and 60"),
        (1, {"bytes_read": 61, "dropped_units": None}, "it must be between 20 and 60"),
    ],
)
def test_bytes_that_no_pass_reads_are_refused(
    step: int, changes: dict[str, Any], says: str
) -> None:
    data = written(made_trace([4, 3], [1.0]))
    data["replies"][0]["tokens"][step] |= changes
    with pytest.raises(TraceError, match=says):
        read(data)


def test_low_planes_that_the_weights_do_not_have_are_refused() -> None:
    data = written(nested_trace())
    put(data, ("model", "low_bytes"), None)
    with pytest.raises(TraceError) as caught:
        read(data)
    assert caught.value.message.startswith(
        "t.json is not a valid trace: the schedule names the low plane 0.mlp.lo, which the weights "
        "do not have"
    )
    assert "\n" not in caught.value.message
    data = written(whole_trace())
    put(data, ("needed_order",), ["7", "9.mlp.lo"])
    with pytest.raises(TraceError, match=r"needed_order names the low plane 9\.mlp\.lo, which"):
        read(data)


def test_a_mixture_of_experts_can_be_read() -> None:
    model = tiny("mixtral").gated
    trace = profile("w1 w2", model=model, schedule=sublayers(model), max_tokens=8, raw=True)[1]
    assert read(written(trace)) == trace
    assert len({token.bytes_read for token in trace.replies[0].tokens}) > 1


def test_columns_of_csv_keep_their_places() -> None:
    """The columns of 0.1.0, then those added since."""
    names = csv_text(whole_trace()).splitlines()[0]
    assert names == (
        "reply,step,token_id,text,depth,dropped_units,active_layers,ms,ms_sd,logprob,entropy,"
        "top_token_id,full_logprob,full_token_id,full_text,kl,needed_depth,saturation_layer,"
        "bytes_read,pass_number,drafted_by,rejected_text"
    )


def test_a_truncated_file_is_refused() -> None:
    text = json.dumps(written(whole_trace())).encode()
    for end in range(0, len(text) - 1, 97):
        with pytest.raises(TraceError, match="is not a valid trace"):
            parse_trace(text[:end], "t.json")


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("replies", 0, "tokens", 3, "depth"), "deep", r"\$\.replies\[0\]\.tokens\[3\]\.depth"),
        (("replies", 0, "tokens", 3, "depth"), 17, "step 3 does not fit"),
        (("replies", 0, "tokens", 3, "depth"), -1, "tokens"),
        (("replies", 0, "tokens", 3, "dropped_units"), 99, "step 3 does not fit"),
        (("replies", 0, "tokens", 3, "bytes_read"), -1, "bytes_read"),
        (("replies", 0, "tokens", 3, "bytes_read"), None, "bytes_read"),
        (("replies", 0, "tokens", 3, "step"), 4, "do not count from 0"),
        (("replies", 0, "tokens", 3, "token_id"), 2**40, "token_id"),
        (("replies", 0, "tokens"), {}, "tokens"),
        (("replies", 0, "layers", "layers"), [], "one time for each layer"),
        (("model", "num_layers"), 20, "another number of layers"),
        (("model", "num_layers"), 10**9, "num_layers"),
        (("replies", 0, "tokens", 3, "ms"), 1e308, "ms"),
        (("replies", 0, "tokens", 3, "logprob"), -1e308, "logprob"),
        (("replies", 0, "tokens", 3, "depth"), 5e-324, "depth"),
        (("replies", 0, "repeats", 0, "ttft_s"), 1e300, "ttft_s"),
        (("sampling", "temperature"), 10**400, "valid trace"),
        (("model", "layer_bytes"), [[1, 2, 3]], "one entry for each layer"),
        (("model", "fixed_bytes"), -1, "fixed_bytes"),
        (("schedule", "alpha"), 3, "alpha is 3"),
        (("schedule", "skip_order"), ["1", "1"], "damaged|weights|twice"),
        (("schedule",), {}, "damaged"),
        (("needed_order",), ["99"], "needed_order is not a skip order"),
        (("needed_order",), ["1", "1.mlp"], "needed_order is not a skip order"),
        (("needed_order",), ["1.x"], "needed_order is not a skip order"),
        (("needed_order",), None, "without needed_order"),
        (("sampling", "temperature"), "hot", "sampling"),
        (("schema",), "1", "schema"),
        (("schema",), 0, "schema"),
        (("replies",), None, "replies"),
    ],
)
def test_a_wrong_field_is_named(path: tuple[Any, ...], value: object, says: str) -> None:
    data: Any = written(whole_trace())
    put(data, path, value)
    with pytest.raises(TraceError, match=says):
        read(data)


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{}", b"[" * 200_000, b'{"schema": NaN}', b"\xff\xfe", b"\x00" * 64],
)
def test_other_files_are_refused(text: bytes) -> None:
    with pytest.raises(TraceError):
        parse_trace(text, "t.json")


def test_nan_is_neither_written_nor_read() -> None:
    token = whole_trace().replies[0].tokens[1]
    for field in fields(TokenTrace):
        if isinstance(getattr(token, field.name), float):
            with pytest.raises(ValueError, match=field.name):
                replace(token, **{field.name: float("nan")})
    text = json.dumps(written(whole_trace())).replace('"kl": 0.0', '"kl": 1e999', 1)
    with pytest.raises(TraceError):
        parse_trace(text.encode(), "t.json")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path / "none.json", "there is no trace"),
        (tmp_path, "is a directory"),
        (Path("a\0b"), "cannot be read"),
        (Path("~nobody-here/x"), "cannot be read"),
    ):
        with pytest.raises(TraceError, match=says):
            read_trace(path)


def test_a_closed_stdin_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(TraceError, match="stdin cannot be read: it is closed"):
        read_trace(Path("-"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(max_examples=200)
@given(data=st.data())
def test_any_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    """With one value of a valid file replaced, it reads as a valid trace or is refused."""
    extra = {"needed_depth": [None, 3.0, 2.0], "saturation_layer": [None, 3, 4]}
    extra |= {"full_token_id": [1, 1, 2], "full_text": ["a"] * 3, "full_logprob": [-1.0] * 3}
    made = made_trace([4, 3, 2], [1.0, 2.0], kl=[0.0, 0.1, 0.2], **extra)
    traces = [made, nested_trace(), made_lossless_trace()]
    whole: Any = json.loads(json.dumps(to_json(data.draw(st.sampled_from(traces)))))
    if data.draw(st.booleans()):
        whole = as_schema_1(whole)
    place, key = whole, data.draw(st.sampled_from(sorted(whole)))
    while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
    place[key] = data.draw(JSON)
    try:
        trace = read(whole)
    except TraceError:
        return
    assert read(written(trace)) == trace
    assert report(trace, 80)
    assert csv_text(trace)
    assert against_report(trace, made, ("a", "b"), 80)
    assert list(sentences(summarize(trace, trace.replies), trace, trace.replies))
    for reply in trace.replies:
        assert _reply(trace, reply)
