"""Shares work on the rows of a matrix among threads that do not wait for each other.

torch's own threads wait for each other after every operation. Operations on pieces that fit in a
processor's cache are so short that, while another program runs, the waits take many times longer
than the work.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def share_rows(rows: int, multiple: int, work: Callable[[slice], None]) -> None:
    """Calls `work` for parts of ``range(rows)``, each on a thread in which torch computes alone.

    There are as many parts as torch has threads, or fewer. All but the last hold a multiple of
    `multiple` rows. The calling thread takes the first.
    """
    threads = torch.get_num_threads()
    step = multiple * -(-rows // (multiple * threads))
    parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step or 1)]

    def work_alone(part: slice) -> None:
        torch.set_num_threads(1)  # in this thread, and in threads that torch meets from now on
        with torch.inference_mode():
            work(part)

    try:
        with ThreadPoolExecutor(len(parts) or 1) as pool:
            others = pool.map(work_alone, parts[1:])
            for part in parts[:1]:
                work_alone(part)
            for _ in others:
                pass
    finally:
        torch.set_num_threads(threads)
