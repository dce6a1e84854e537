"""A lock between processes."""

from pathlib import Path

import pytest
from filelock import FileLock

from d3cli.base.file_lock import file_lock


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this system has no /proc")
def test_a_place_where_no_file_can_be_made_is_no_lock_that_is_held() -> None:
    with pytest.raises(FileNotFoundError), file_lock(Path("/proc/.lock"), patience=0.05):
        pass


def test_it_waits_for_another_holder(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".lock"
    with file_lock(path, patience=0):
        with pytest.raises(TimeoutError), file_lock(path, patience=0.05):
            pass
        with pytest.raises(TimeoutError):
            FileLock(path).acquire(timeout=0)
    with file_lock(path, patience=0):  # it was released
        pass
