"""Calibrations made by hand, and the key of the model that they are for."""

from d3cli.depth.calibration_record import Calibration, ModelKey, Unseen
from d3cli.depth.draft_record import DraftCalibration
from d3cli.depth.schedule import DepthSchedule, static_schedule
from tests.depth.layers import equal_layers

SCHEDULE = DepthSchedule(16, 0.98, 8, 4, 4, ("9", "7", "5"))
UNSEEN = Unseen(
    documents=60,
    drop=0.008,
    drop_interval=(0.003, 0.0097),
    kl=0.011,
    same_top=0.97,
    layer_ratio=1.25,
    byte_ratio=1.21,
)
FOUND = Calibration(
    schedule=SCHEDULE,
    target_drop=0.01,
    confidence=0.95,
    unseen=UNSEEN,
    settings={"units": "layers", "seed": 0, "share": 0.5, "file": None, "quick": True},
    data_hash="ab" * 32,
    version="0.1.0",
    date="2026-01-02T03:04:05+00:00",
)
KEY = ModelKey("someone/fox", "0" * 64, "1" * 40, "bfloat16", None)
DRAFTS = DraftCalibration(
    schedule=static_schedule(equal_layers(16), ("9", "7", "5")),
    agreement=0.9,
    agreement_low=0.88,
    documents=24,
    tokens=1000,
    cost=0.5,
    length=4,
    gain=1.6,
    gain_low=1.5,
    confidence=0.9,
    settings={"data": "built-in", "seed": 0},
    data_hash="cd" * 32,
    version="0.2.0",
    date="2026-01-02T03:04:05+00:00",
)
