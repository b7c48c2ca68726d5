"""Hot requests of another protocol: what the replica is asked instead, and who reads its answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from control_plane.activator.call import Downstream
from infra.contracts.revision import Revision


@dataclass(frozen=True, slots=True)
class Question:
    """`content` is a body of the target's contract; `answer` puts a client that translates before
    the one that asked."""

    content: bytes
    answer: Callable[[Downstream, Revision], Downstream]


# Of a model's name, the body as it was sent, and the headers; raises Invalid.
Translation = Callable[[str, bytes, Mapping[bytes, bytes]], Question]
