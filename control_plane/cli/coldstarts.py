"""`platform coldstarts`: where the wait of cold requests went."""

from control_plane.cli.failure import CommandFailed
from control_plane.cli.session import Session
from control_plane.cli.waterfall import (
    COMPARED_WIDTH,
    FIXED_WIDTH,
    canvas,
    comparison,
    waterfall,
)
from infra.contracts.stage import ColdStartReport


def find_reports(
    session: Session, name: str, *, last: int, request_id: str | None
) -> list[ColdStartReport]:
    """Reports oldest first; fails where there is none."""
    if request_id is not None:
        reports = session.platform.cold_starts(name, request_id=request_id)
    else:
        reports = session.platform.cold_starts(name, last=last)
    if not reports:
        raise CommandFailed(
            f"no cold start of {name} is on record",
            hint=f"a model that is idle starts cold: platform invoke {name} --prompt Hello",
        )
    return sorted(reports, key=lambda report: report.started_at)


def draw_reports(session: Session, reports: list[ColdStartReport]) -> None:
    """One waterfall after another, to standard output."""
    drawing = canvas(session.out.width, session.out.encoding, beside=FIXED_WIDTH)
    for place, report in enumerate(reports):
        if place:
            session.out.print()
        session.out.print(waterfall(report, drawing))


def draw_comparison(session: Session, reports: list[ColdStartReport]) -> None:
    """The two newest, side by side, to standard output."""
    if len(reports) < 2:
        raise CommandFailed(
            "there is one cold start on record, two are compared",
            hint="let the model go idle and call it again",
        )
    before, after = reports[-2:]
    drawing = canvas(session.out.width, session.out.encoding, beside=COMPARED_WIDTH, bars=2)
    session.out.print(comparison(before, after, drawing))


def print_waterfall(session: Session, name: str, request_id: str) -> None:
    """One request's waterfall, to standard error; a report that is not there is no failure."""
    try:
        reports = session.platform.cold_starts(name, request_id=request_id)
    except CommandFailed as failure:
        session.err.print(f"the cold start's report is not to be had: {failure.message}")
        return
    drawing = canvas(session.err.width, session.err.encoding, beside=FIXED_WIDTH)
    for report in reports[:1]:
        session.err.print()
        session.err.print(waterfall(report, drawing))
