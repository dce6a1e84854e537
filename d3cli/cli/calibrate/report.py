"""A calibration's report for people: rows of a name and a value."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from d3cli.base.amounts import signed_percent
from d3cli.base.errors import spelled
from d3cli.cli.calibrate.machine_report import as_json, csv_rows
from d3cli.cli.calibrate.options import Format
from d3cli.cli.calibrate.plot import plot
from d3cli.cli.calibrate.policies import policies_json, write_policies
from d3cli.cli.calibrate.task import TaskReport
from d3cli.cli.output import Output, flag
from d3cli.depth.calibration_record import form_in_words
from d3cli.depth.prompt_order import order_in_words
from d3cli.depth.units import UnitKind, parse_unit, units_in_words

if TYPE_CHECKING:
    from d3cli.calibrate.policies import ComparedPolicies
    from d3cli.calibrate.result import DecayVerdict, Judged, Measured, Nearest, Outcome
    from d3cli.calibrate.settings import CalibrationSettings
    from d3cli.calibrate.space import Candidate
    from d3cli.scoring.intervals import Drop

HIGH_KL = 5  # in multiples of the target, in nats
MIN_SAVED = 0.02  # as in `d3cli.calibrate.space`, which takes long to import
KINDS = {
    None: "full depth",
    "layer": "whole layers",
    "sublayer": "sublayers",
    "plane": "low planes",
    "mixed": "mixed units",
}
Rows = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Report:
    """How a calibration is reported.

    Attributes:
        title: the model's name.
        command: the command that was given, without the target.
        task: right answers; None if no task was given.
        policies: rival policies beside D³; None if they were not asked for.
    """

    title: str
    form: Format
    command: str
    task: TaskReport | None = None
    policies: "ComparedPolicies | None" = None


def write_report(
    output: Output,
    outcome: "Outcome",
    settings: "CalibrationSettings",
    report: Report,
    stored: Path | None,
) -> None:
    """Writes the outcome to stdout.

    Args:
        stored: the file that holds it.
    """
    policies, task = report.policies, report.task
    if report.form is Format.json:
        found = as_json(outcome, settings, stored, task)
        output.json(found | {"policies": None if policies is None else policies_json(policies)})
    elif report.form is Format.csv:
        output.csv(csv_rows(outcome))
    else:
        rows = [*report_rows(outcome, settings, report.command), *(task.rows() if task else ())]
        output.table(("calibration", report.title), rows)
        if picture := plot(outcome, settings, output.stdout_width):
            output.write(f"\n{picture}\n")
        if policies is not None:
            write_policies(output, policies)


def report_rows(outcome: "Outcome", settings: "CalibrationSettings", command: str) -> Rows:
    """Everything that the calibration found; `command` as for `write_report`."""
    yield (
        "target",
        f"at most {signed_percent(settings.target_drop)} perplexity, with "
        f"{100 * settings.confidence:g}% confidence",
    )
    yield "compared with", f"full depth in {form_in_words(outcome.against)}"
    if outcome.why_not_as_stored:
        yield (
            "  note",
            f"what nesting costs is outside the target: as stored, {outcome.why_not_as_stored}",
        )
    if outcome.chosen is None:
        yield "chosen", f"nothing: {spelled(outcome.why_not, flag)}"
        yield from _instead(outcome, command)
    else:
        yield from _chosen(outcome.chosen, settings)
    yield from _forms(outcome)
    yield from _best_of_kinds(outcome, settings)
    yield from _decay(outcome)
    for kind, order in outcome.orders.items():
        words = "mixed units" if kind == "mixed" else units_in_words(kind)
        yield f"order of {words}", " ".join(order) or "none can be dropped"
    for kind_name, influence in _influence(outcome):
        # + 0.0, since a tiny negative number rounds to -0.0
        values = " ".join(f"{unit}:{round(value, 4) + 0.0:.4f}" for unit, value in influence)
        yield f"influence of {units_in_words(kind_name)}", values
    yield "took", f"{outcome.seconds:.0f} s"
    for cut in outcome.cut:
        yield "to save time", cut


def _instead(outcome: "Outcome", command: str) -> Rows:
    """What the model can do although the target was not met."""
    if (nearest := outcome.nearest) is not None:
        candidate, drop = nearest.tried.candidate, nearest.tried.drop
        yield (
            "smallest drop",
            f"{_bounds(drop)} perplexity for {_savings(candidate)} ({_in_words(candidate)}; "
            f"{'unseen text' if nearest.on_unseen_text else 'search half'})",
        )
        if candidate.kind is not None:
            yield "  skip order", order_in_words(candidate.schedule)
        yield "  to allow it", accepting(nearest, command)
    elif outcome.text_fits:
        yield "smallest drop", f"no schedule tried saves {MIN_SAVED:.0%} of the time"
    for one in outcome.alternatives:
        yield (
            "without decay",
            f"{flag(one.setting)} reads {one.byte_ratio:.1f}× fewer bytes per token; what it does "
            "to quality was not measured",
        )


def accepting(nearest: "Nearest", command: str) -> str:
    """The command that is likely to accept the schedule with the smallest drop."""
    if nearest.target_drop is None:
        return "no target up to 100% is safely above it"
    return f"{command} --target-drop {100 * nearest.target_drop:g}%"


def _chosen(chosen: "Measured", settings: "CalibrationSettings") -> Rows:
    candidate, steps = chosen.candidate, settings.reply_tokens
    yield "chosen", _in_words(candidate)
    if candidate.kind is not None:
        yield "skip order", order_in_words(candidate.schedule)
    yield (
        f"replies of {steps} tokens",
        f"layers {chosen.layer_ratio:.2f}×, bytes {chosen.byte_ratio:.2f}×; {_savings(candidate)}",
    )
    yield (
        "on unseen text",
        f"{_bounds(chosen.drop)} perplexity; {chosen.documents} documents, "
        f"{chosen.tokens:,} tokens",
    )
    for begin, end, tokens, drop in chosen.by_position:
        yield f"  tokens {begin} to {end}", f"{signed_percent(drop)} ({tokens:,} tokens)"
    yield (
        "  against full depth",
        f"KL {chosen.kl:.4f} nats per token, same top choice {chosen.same_top:.1%}; full depth's "
        f"perplexity {chosen.full_perplexity:.4g}",
    )
    if candidate.kind is not None:
        yield (
            "  at minimum depth",
            f"{signed_percent(chosen.floor_drop)} ({chosen.floor_tokens:,} tokens)",
        )
    longest = chosen.by_position[-1][1]
    if candidate.kind is not None and steps > longest:
        yield (
            "  note",
            f"the longest reply scored has {longest} tokens; after that, replies of {steps} tokens "
            "run at minimum depth",
        )
    if chosen.kl > HIGH_KL * math.log1p(settings.target_drop):
        yield "  note", "the KL divergence is far above the target: try --self-replies"


def _forms(outcome: "Outcome") -> Rows:
    """The forms of the weights at full depth."""
    for one in outcome.forms:
        if one.form == outcome.against:
            costs = "what the others are compared with"
        else:
            costs = f"{_bounds(one.full.drop)}; {_savings(one.full.candidate)}"
        searched = "" if one.searched else "; schedules were not searched"
        if one.dominated_by:
            searched += f", since {one.dominated_by.split()[-1]} is faster and about as good"
        yield (
            f"{one.form.split()[-1]} weights",
            f"{1000 * one.step_seconds:.3g} ms a token; {costs}{searched}",
        )


def _decay(outcome: "Outcome") -> Rows:
    """Constant depth against decay, by fixed text and by replies."""
    verdict = outcome.verdict
    for sort, one in outcome.rivals.items():
        yield f"best {sort}", _measured(one)
    if verdict is not None:
        yield "constant depth", _measured(verdict.static)
        yield "decaying depth", _measured(verdict.decaying)
        yield "did decay pay?", f"{verdict.words}: {_against_constant(verdict.difference)}"
    for name, judged in outcome.judged.items():
        yield f"replies by {name}", _judged(judged)
    if verdict is not None:
        yield "  by replies", _by_replies(verdict)
    elif outcome.no_verdict:
        yield "did decay pay?", outcome.no_verdict


def _by_replies(verdict: "DecayVerdict") -> str:
    from d3cli.calibrate.result import decay_paid

    if verdict.by_replies is None:
        return "not measured: --replies lets D³ write replies and full depth judge them"
    return f"{decay_paid(verdict.by_replies)}: {_against_constant(verdict.by_replies)}"


def _against_constant(difference: "Drop") -> str:
    return f"{_bounds(difference)} perplexity against constant depth"


def _influence(outcome: "Outcome") -> Iterator[tuple[UnitKind, list[tuple[str, float]]]]:
    """The units of each kind, those with the least influence first."""
    by_kind: dict[UnitKind, list[tuple[str, float]]] = {}
    for unit, value in sorted(outcome.influence.items(), key=lambda pair: pair[1]):
        by_kind.setdefault(parse_unit(unit).kind, []).append((unit, value))
    yield from sorted(by_kind.items())


def _best_of_kinds(outcome: "Outcome", settings: "CalibrationSettings") -> Rows:
    tried = {
        (one.candidate.kind, one.candidate.by_prompt)
        for one in outcome.tried.values()
        if one.candidate.kind is not None
    }
    tried |= {(kind, False) for kind in outcome.orders}
    for kind, by_prompt in sorted(tried):
        text = "none within the target"
        if best := outcome.best(kind, settings.target_drop, by_prompt=by_prompt):
            text = f"{_savings(best.candidate)}, {_bounds(best.drop)} perplexity"
        order = " by prompt" if by_prompt else ""
        yield f"best of {KINDS[kind]}{order}", f"{text} (search half)"
    if outcome.short_prompts and any(by_prompt for _, by_prompt in tried):
        yield (
            "  note",
            f"{outcome.short_prompts} documents of the search half have prompts too short to "
            "decide an order; they run at full depth there",
        )


def _in_words(candidate: "Candidate") -> str:
    form = "" if candidate.quantization is None else f"{candidate.quantization}, "
    if candidate.kind is None:
        return f"{form}{KINDS[None]}"
    order = ", each prompt's own order" if candidate.by_prompt else ""
    return f"{form}{KINDS[candidate.kind]}{order}: {candidate.schedule.in_words()}"


def _savings(candidate: "Candidate") -> str:
    """What it saves, net of repair: the time as predicted from measured steps, and the bytes."""
    return f"{candidate.speed:.2f}× as fast, bytes {candidate.byte_ratio:.2f}×, net of repair"


def _bounds(drop: "Drop") -> str:
    return (
        f"{signed_percent(drop.value)} ({signed_percent(drop.low)} to {signed_percent(drop.high)})"
    )


def _measured(measured: "Measured") -> str:
    candidate = measured.candidate
    return (
        f"{_bounds(measured.drop)} perplexity, KL {measured.kl:.4f} nats per token, "
        f"same top choice {measured.same_top:.1%}, {_savings(candidate)} ({_in_words(candidate)})"
    )


def _judged(judged: "Judged") -> str:
    text = (
        f"full depth's perplexity {judged.perplexity:.3f} on {judged.prompts} replies, "
        f"{judged.tokens:,} tokens"
    )
    return text if judged.rise is None else f"{text}: {_bounds(judged.rise)}"
