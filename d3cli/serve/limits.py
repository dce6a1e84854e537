"""How much a request may take."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take, and all of them together.

    Attributes:
        body_bytes: of a request's body.
        all_bodies_bytes: of the bodies of all requests that arrive, wait or are answered.
        body_s: seconds in which a body must arrive.
        send_s: seconds after which a client that takes nothing of its reply is given up.
        reply_s: seconds that a request may take, waiting included.
    """

    body_bytes: int = 8 << 20
    all_bodies_bytes: int = 64 << 20
    body_s: float = 30.0
    send_s: float = 60.0
    reply_s: float = 600.0
