"""How the edge speaks HTTP: bounded, and in problems even to who does not speak it."""

from control_plane.api import problems
from infra.bounded_http import BoundedHttp
from infra.errors import PlatformError


class EdgeProtocol(BoundedHttp):
    """The protocol class for uvicorn's `http=`."""

    def raw_problem(self, error: PlatformError) -> bytes:
        return problems.raw_response(error)
