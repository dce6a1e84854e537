"""Where a model comes from, and the depth schedule that is stored for it."""

from collections.abc import Callable
from dataclasses import dataclass

from d3cli.base.errors import ScheduleError, StoreError
from d3cli.depth.calibration_record import Calibration, ModelKey
from d3cli.depth.calibration_store import Stale, find, find_drafts
from d3cli.depth.draft_record import DraftCalibration
from d3cli.depth.prompt_order import Schedule
from d3cli.depth.schedule import DepthSchedule
from d3cli.files.json_files import read_json
from d3cli.files.names import ModelFiles
from d3cli.kernels.quantization import Quantization


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from, and the depth schedule that is stored for it.

    Attributes:
        key: what a calibration of it is stored under; None if it does not come from files or runs
            at full depth only.
        calibration: what the store holds for it, or why that is not used.
        shipped: the depth schedule that came with it.
        drafts: what the store holds for drafts of its lossless replies; None also if that is not
            used.
        shipped_drafts: the depth schedule for drafts that came with it.
        builtin: whether it is the model that ships with d3cli.
        quantization: how its weights were quantized while loading; None if they were not.
    """

    key: ModelKey | None = None
    calibration: Calibration | Stale | None = None
    shipped: DepthSchedule | None = None
    drafts: DraftCalibration | None = None
    shipped_drafts: DepthSchedule | None = None
    builtin: bool = False
    quantization: Quantization | None = None

    @property
    def schedule(self) -> Schedule | None:
        """The model's own depth schedule: calibrated here, else shipped with it, else none."""
        if isinstance(self.calibration, Calibration):
            return self.calibration.schedule
        return self.shipped

    @property
    def drafting(self) -> DraftCalibration | DepthSchedule | None:
        """What drafts lossless replies: calibrated here, else shipped with it, else nothing."""
        return self.drafts or self.shipped_drafts


def shipped_origin(files: ModelFiles, quantization: Quantization | None) -> Origin:
    """The origin of a model as it was shipped; only the built-in one comes with schedules."""
    if not files.builtin:
        return Origin(quantization=quantization)
    shipped, drafts = (
        DepthSchedule.from_json(read_json(files.path / name))
        for name in ("schedule.json", "draft_schedule.json")
    )
    return Origin(shipped=shipped, shipped_drafts=drafts, builtin=True, quantization=quantization)


def find_calibration(
    key: ModelKey, check: Callable[[Schedule], None]
) -> Calibration | Stale | None:
    """What the store holds for a model, or why that is not used.

    Args:
        check: raises ScheduleError if a schedule does not fit the model.
    """
    try:
        found = find(key)
        if isinstance(found, Calibration):
            check(found.schedule)
    except ScheduleError as error:
        return Stale(error.message)
    except StoreError as error:
        return Stale(error.message, error.hint)
    return found


def find_draft_calibration(
    key: ModelKey, check: Callable[[Schedule], None]
) -> DraftCalibration | None:
    """What the store holds for drafts of a model; arguments as for `find_calibration`.

    A damaged store is reported with the calibration for replies. A stale one is not missed: drafts
    change no reply.
    """
    try:
        found = find_drafts(key)
        if isinstance(found, DraftCalibration):
            check(found.schedule)
            return found
    except (ScheduleError, StoreError):
        pass
    return None
