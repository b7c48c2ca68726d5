"""How a worker in a container finds its agent: by a socket that only this container sees."""

import socket
from typing import NamedTuple


class Entrance(NamedTuple):
    """The link to the agent, and a listening socket on which this worker is reached."""

    link: int
    listening: int


def enter(path: str) -> Entrance:
    """Connects, and is given the listening socket with the first byte. Raises OSError."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(path)
    greeting, descriptors, _, _ = socket.recv_fds(link, 1, 1)
    if not greeting or len(descriptors) != 1:
        raise ConnectionResetError("the agent did not greet")
    return Entrance(link.detach(), descriptors[0])


def greet(link: socket.socket, listening: socket.socket) -> None:
    """The agent's side of it."""
    socket.send_fds(link, [b"\n"], [listening.fileno()])
