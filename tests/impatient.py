"""Makes ``d3 serve`` give slow clients up sooner: no test need wait half a minute for each."""

import sys
from functools import partial


def lose_patience(header_s: float, body_s: float, send_s: float) -> None:
    """Replaces the time limits of this process' server.

    Args:
        header_s, body_s: seconds in which the headers and the body of a request must arrive.
        send_s: seconds after which a client that takes nothing of its reply is given up.
    """
    import d3cli.cli.serve.loading
    import d3cli.serve.protocol

    d3cli.serve.protocol.HEADER_S = header_s  # type: ignore[assignment]
    d3cli.serve.protocol.STALLED_S = send_s  # type: ignore[assignment]
    limits = partial(d3cli.cli.serve.loading.Limits, body_s=body_s, send_s=send_s)
    d3cli.cli.serve.loading.Limits = limits  # type: ignore[assignment,misc]


def serve(*options: str) -> None:
    """``d3 serve`` in a child of `tests.forks`; good clients keep its limits on any machine."""
    from d3cli.__main__ import main

    lose_patience(5.0, 5.0, 5.0)
    sys.argv = ["d3", "serve", *options]
    main()
