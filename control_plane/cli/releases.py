"""`platform revisions`, `traffic` and `rollback`: which revision answers."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from control_plane.cli.session import Session, printable, session_of
from control_plane.cli.table import table
from control_plane.cli.units import duration
from control_plane.cli.warming import switch
from infra.contracts.release import LockedFile, RevisionStatus, TrafficShare, TrafficStatus

REVISION_HEADINGS = (
    *("REVISION", "TRAFFIC", "REPLICAS", "RUNNING", "WAITING", "ENDED", "FAILED", "AGE"),
    *("ROLLBACK", "SOURCE"),
)
TRAFFIC_HEADINGS = ("REVISION", "TRAFFIC")
FILE_HEADINGS = ("REVISION", "BYTES", "FILE", "DIGEST")
NUMBERS = frozenset((*REVISION_HEADINGS[1:8], "BYTES"))

Name = Annotated[str, typer.Argument(help="The model's name.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait at most.", min=0)]
Now = Annotated[
    bool, typer.Option("--now", help="Switch at once, without having replicas ready first.")
]


def revisions(
    context: typer.Context,
    name: Name,
    files: Annotated[bool, typer.Option("--files", help="List each one's files.")] = False,
    json: Json = False,
) -> None:
    """List the revisions of a model that are kept."""
    session = session_of(context)
    found = session.platform.revisions(name)
    if json:
        session.print_json(f"[{','.join(it.model_dump_json() for it in found)}]")
        return
    if files:
        lines = [_file_row(it, file) for it in found for file in it.files]
        session.out.print(*table(FILE_HEADINGS, lines, numbers=NUMBERS), sep="\n")
        return
    rows = [_revision_row(it, session.unix_now()) for it in found]
    session.out.print(*table(REVISION_HEADINGS, rows, numbers=NUMBERS), sep="\n")


def traffic(
    context: typer.Context,
    name: Name,
    shares: Annotated[
        list[str] | None,
        typer.Argument(help="REVISION=PERCENT, one for each in traffic.", show_default=False),
    ] = None,
    now: Now = False,
    timeout: Timeout = 600,
    json: Json = False,
) -> None:
    """Show or set how a model's requests are split."""
    percents = percents_of(name, shares or ())
    session = session_of(context)
    platform = session.platform
    if not percents:
        status = platform.traffic(name)
    elif now:
        status = platform.split(name, percents)
    else:
        status = switch(session, name, percents, timeout_s=timeout)
    _show(session, status, is_json=json)


def rollback(
    context: typer.Context,
    name: Name,
    revision: Annotated[
        str | None, typer.Argument(help="Unset takes the one before.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Send all requests to a former revision."""
    session = session_of(context)
    to = None if revision is None else full_name(name, revision)
    _show(session, session.platform.rollback(name, to), is_json=json)


def percents_of(model: str, shares: Sequence[str]) -> dict[str, int]:
    """`["1=90", "chat@2=10"]` as percents by revision; raises BadParameter."""
    percents: dict[str, int] = {}
    for share in shares:
        revision, _, percent = share.rpartition("=")
        if not revision or not (percent.isascii() and percent.isdecimal() and len(percent) <= 3):
            raise _bad(f"{share} is not REVISION=PERCENT, as in {model}@2=10")
        name = full_name(model, revision)
        if name in percents:
            raise _bad(f"{name} is there twice")
        percents[name] = int(percent)
    if percents and (total := sum(percents.values())) != 100:
        raise _bad(f"the shares add up to {total} %, not to 100")
    return percents


def full_name(model: str, revision: str) -> str:
    """`2` is short for `chat@2`."""
    return revision if "@" in revision else f"{model}@{revision}"


def split_text(shares: Sequence[TrafficShare]) -> str:
    """`chat@2`, or `chat@2 90%, chat@1 10%`."""
    if len(shares) == 1:
        return shares[0].revision
    return ", ".join(f"{share.revision} {share.percent}%" for share in shares)


def _bad(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="SHARES")


def _show(session: Session, status: TrafficStatus, *, is_json: bool) -> None:
    if is_json:
        session.print_json(status.model_dump_json())
        return
    rows = [[Text(share.revision), _percent(share.percent)] for share in status.traffic]
    session.out.print(*table(TRAFFIC_HEADINGS, rows, numbers=NUMBERS), sep="\n")


def _revision_row(status: RevisionStatus, unix_now: float) -> list[Text]:
    return [
        Text(status.revision),
        _percent(status.percent),
        Text(str(status.replicas)),
        Text(str(status.in_flight)),
        Text(str(status.waiting)),
        Text(str(status.requests)),
        Text(str(status.failed), style="red" if status.failed else ""),
        Text(duration(unix_now - status.created_at)),
        Text("goes here" if status.is_previous else ""),
        Text(printable(status.source)),
    ]


def _file_row(status: RevisionStatus, file: LockedFile) -> list[Text]:
    return [
        Text(status.revision),
        Text(str(file.size)),
        Text(printable(file.path)),
        Text(printable(file.digest or "-")),
    ]


def _percent(percent: int) -> Text:
    return Text(f"{percent}%", style="green") if percent else Text("-")
