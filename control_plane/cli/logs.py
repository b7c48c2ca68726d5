"""`platform logs`: what a model's replicas and the fleet said."""

from datetime import UTC, datetime

from pydantic import BaseModel, ValidationError

from control_plane.cli.session import Session, printable


class _Line(BaseModel):
    at: float
    source: str
    text: str


def logs(session: Session, name: str, *, is_following: bool, is_json: bool) -> None:
    """Prints lines as they come; with `is_following` until it is interrupted."""
    with session.platform.logs(name, follow=is_following) as lines:
        for line in lines:
            if line.strip():
                session.write((line if is_json else _readable(line)) + "\n")


def _readable(line: str) -> str:
    """`15:04:05.123 source text`; a line of another kind as it is."""
    try:
        entry = _Line.model_validate_json(line)
    except ValidationError:
        return printable(line)
    at = datetime.fromtimestamp(entry.at, UTC).astimezone()
    return printable(f"{at:%H:%M:%S}.{at.microsecond // 1000:03} {entry.source}  {entry.text}")
