"""`platform jobs`: what was left to be done, what came of it, and another try."""

from typing import Annotated

import typer
from rich.text import Text

from control_plane.cli.session import Session, printable, session_of
from control_plane.cli.table import table
from control_plane.cli.units import duration
from infra.contracts.job import JobState, JobStatus

HEADINGS = ("JOB", "MODEL", "STATE", "ATTEMPTS", "AGE", "REASON")
NUMBERS = frozenset({"ATTEMPTS", "AGE"})
STYLES = {
    JobState.QUEUED: "yellow",
    JobState.RUNNING: "yellow",
    JobState.SUCCEEDED: "green",
    JobState.FAILED: "red",
    JobState.CANCELLED: "bright_black",
    JobState.EXPIRED: "red",
}

jobs = typer.Typer(help="Work with jobs.", no_args_is_help=True, rich_markup_mode=None)

JobArgument = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `ls` shows it.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@jobs.command("ls")
def _ls(
    context: typer.Context,
    model: Annotated[str | None, typer.Option(help="Of this model.", show_default=False)] = None,
    state: Annotated[
        JobState | None, typer.Option(help="In this state.", show_default=False)
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="Of this tenant; an admin's affair.", show_default=False)
    ] = None,
    last: Annotated[int, typer.Option(help="How many, the newest.", min=1)] = 20,
    json: Json = False,
) -> None:
    """List jobs, the newest first."""
    session = session_of(context)
    found = session.platform.jobs(model=model, state=state, tenant=tenant, last=last)
    if json:
        session.print_json(f"[{','.join(job.model_dump_json() for job in found)}]")
    elif found:
        now = session.unix_now()
        lines = table(HEADINGS, (_row(job, now) for job in found), numbers=NUMBERS)
        session.out.print(*lines, sep="\n")
    else:
        session.err.print("there is no such job: platform invoke NAME --async")


@jobs.command("show")
def _show(
    context: typer.Context,
    job_id: JobArgument,
    result: Annotated[bool, typer.Option("--result", help="Print the result alone.")] = False,
    json: Json = False,
) -> None:
    """Show a job, and its result once there is one."""
    session = session_of(context)
    if result:
        session.print_json(session.platform.job_result(job_id))
        return
    job = session.platform.job(job_id)
    if json:
        session.print_json(job.model_dump_json())
        return
    _describe(session, job)
    if job.state is JobState.SUCCEEDED:
        session.print_json(session.platform.job_result(job_id))


@jobs.command("cancel")
def _cancel(context: typer.Context, job_id: JobArgument) -> None:
    """End a job that waits or runs."""
    session = session_of(context)
    session.err.print(f"{session.platform.cancel_job(job_id).id} is cancelled")


@jobs.command("redrive")
def _redrive(context: typer.Context, job_id: JobArgument) -> None:
    """Try a failed job again."""
    session = session_of(context)
    session.err.print(f"{session.platform.redrive_job(job_id).id} is queued")


def _row(job: JobStatus, unix_now: float) -> list[Text]:
    return [
        Text(job.id),
        Text(printable(job.model)),
        Text(job.state.value, style=STYLES[job.state]),
        Text(str(job.attempts)),
        Text(duration(unix_now - job.created_at)),
        Text(_reason(job)),
    ]


def _reason(job: JobStatus) -> str:
    """What last went wrong; nothing of what went well."""
    if job.problem is None:
        return ""
    kind = "dead letter: " if job.is_dead_letter else ""
    return kind + printable(job.problem.detail)


def _describe(session: Session, job: JobStatus) -> None:
    say = session.err.print
    attempts = "1 attempt" if job.attempts == 1 else f"{job.attempts} attempts"
    say(f"{job.id} of {job.model}: {job.state.value}, {attempts}")
    if job.problem is not None:
        say(_reason(job))
    if job.started_at is not None and job.finished_at is not None:
        waited_s, ran_s = job.started_at - job.created_at, job.finished_at - job.started_at
        say(f"waited {duration(waited_s)}, ran {duration(ran_s)}")
    if job.webhook is not None:
        calls = ", ".join(printable(call.outcome) for call in job.webhook.calls)
        say(f"webhook {job.webhook.state}" + (f": {calls}" if calls else ""))
