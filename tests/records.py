"""A calibration made by hand, and the key of the model that it is for."""

from d3cli.depth.calibration_record import Calibration, ModelKey, Unseen
from d3cli.depth.schedule import DepthSchedule

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
