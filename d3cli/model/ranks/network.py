"""Ranks on several machines: the interface they use, and how they notice that a machine is gone."""

import os
import socket

import psutil

# Seconds without a word until the kernel asks whether the other machine is there, between two such
# questions, and how many of them may stay unanswered.
KEEPALIVE = {"TCP_KEEPIDLE": 6, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 4}


def use_interface() -> None:
    """Lets gloo use the interface that leads to the first machine, unless the user names one.

    Otherwise it takes the address of this host's name, which is often one that others cannot reach.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with socket.create_connection(place) as connection:
        address = connection.getsockname()[0]
    for name, ends in psutil.net_if_addrs().items():
        if any(end.address == address for end in ends):
            os.environ["GLOO_SOCKET_IFNAME"] = name


def notice_silence() -> None:
    """Makes the kernel close a connection of this process whose other end is silent.

    A process that dies closes its connections itself. A machine that loses its power or its cable
    does not, and whoever waits for it would wait forever.
    """
    for connection in psutil.Process().net_connections("tcp"):
        if connection.status != psutil.CONN_ESTABLISHED:
            continue
        # A copy of the descriptor, since closing this object must not close gloo's.
        with socket.socket(fileno=os.dup(connection.fd)) as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in KEEPALIVE.items():
                if hasattr(socket, name):  # where the kernel lets a program choose it
                    end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
