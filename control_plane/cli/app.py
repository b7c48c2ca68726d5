"""The command line: verbs and flags, each calling the module that does it."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from control_plane.cli import (
    coldstarts,
    deploy,
    evaluating,
    explaining,
    exporting,
    images,
    importing,
    invoke,
    jobs,
    listing,
    login,
    logs,
    nodes,
    releases,
    tenants,
    wait,
)
from control_plane.cli.group import PlatformGroup
from control_plane.cli.session import Session, session_of
from infra.contracts.revision import ModelState

app = typer.Typer(
    name="platform",
    cls=PlatformGroup,
    help="Serve models that nobody is calling for nothing.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
models = typer.Typer(help="Work with model files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="models")
app.add_typer(images.images, name="images")
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(tenants.keys, name="keys")
app.add_typer(tenants.tenants, name="tenants")
app.command("revisions")(releases.revisions)
app.command("traffic")(releases.traffic)
app.command("rollback")(releases.rollback)
app.command("usage")(tenants.usage)
app.command("nodes")(nodes.nodes)
app.command("login")(login.login)
app.command("logout")(login.logout)


class WaitedFor(StrEnum):
    """States that come about by themselves."""

    READY = "ready"
    IDLE = "idle"


class Format(StrEnum):
    """Number formats of weights, and of keys and values."""

    BF16 = "bf16"
    INT8 = "int8"
    INT4 = "int4"
    INT8_KV = "int8-kv"


Name = Annotated[str, typer.Argument(help="The model's name.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait at most.", min=0)]


@app.callback()
def _connect(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(help="Where the platform answers; unset takes PLATFORM_URL."),
    ] = None,
) -> None:
    """Serve models that nobody is calling for nothing."""
    if context.obj is None:
        context.obj = partial(Session.start, url)


@app.command("deploy")
def _deploy(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="A model.yaml, or - for standard input.")],
    wait: Annotated[
        bool, typer.Option(help="Wait for its image's index, and for replicas of scaling.min.")
    ] = True,
    traffic: Annotated[
        bool, typer.Option(help="Send all requests to it, or none until `platform traffic`.")
    ] = True,
    now: releases.Now = False,
    timeout: Timeout = 600,
    json: Json = False,
) -> None:
    """Publish a model."""
    session = session_of(context)
    status = deploy.deploy(
        session,
        file,
        takes_traffic=traffic,
        is_now=now,
        is_waiting=wait,
        timeout_s=timeout,
    )
    if json:
        session.print_json(status.model_dump_json())
    else:
        session.write(deploy.describe_deployed(status, sends_key=session.platform.sends_key))


@app.command("invoke")
def _invoke(
    context: typer.Context,
    name: Name,
    prompt: Annotated[
        str | None, typer.Option(help="What to say; - or nothing reads standard input.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print tokens as they come.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="System message of the chat.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Tokens to generate at most.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 always takes the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among tokens that hold this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")
    ] = None,
    is_async: Annotated[
        bool, typer.Option("--async", help="Leave it as a job, and print the job's id.")
    ] = False,
    json: Json = False,
) -> None:
    """Call a model; one that sleeps wakes up."""
    if is_async and stream:
        raise typer.BadParameter("nobody is there to read a job's stream", param_hint="--stream")
    if raw and system is not None:
        raise typer.BadParameter("a raw prompt has no system message", param_hint="--system")
    body = invoke.request_body(
        prompt,
        is_raw=raw,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop=stop or [],
    )
    if is_async:
        invoke.leave(session_of(context), name, body, is_json=json)
        return
    invocation = invoke.Invocation(name, body, is_streamed=stream, is_json=json)
    invoke.invoke(session_of(context), invocation)


@app.command("ls")
def _ls(context: typer.Context, json: Json = False) -> None:
    """List what is deployed and where it stands."""
    session = session_of(context)
    found = session.platform.models()
    if json:
        session.print_json(f"[{','.join(model.model_dump_json() for model in found)}]")
    elif found:
        session.out.print(*listing.listing(found, unix_now=session.unix_now()), sep="\n")
    else:
        session.err.print("nothing is deployed: platform deploy model.yaml")


@app.command("logs")
def _logs(
    context: typer.Context,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines.")] = False,
    json: Json = False,
) -> None:
    """Show what a model's replicas and the fleet said."""
    logs.logs(session_of(context), name, is_following=follow, is_json=json)


@app.command("coldstarts")
def _coldstarts(
    context: typer.Context,
    name: Name,
    last: Annotated[int, typer.Option(help="How many, the newest.", min=1, max=200)] = 1,
    request: Annotated[
        str | None, typer.Option(help="The one of this request id.", show_default=False)
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="The two newest side by side.")
    ] = False,
    json: Json = False,
) -> None:
    """Show where the wait of cold requests went."""
    session = session_of(context)
    count = max(last, 2) if compare else last
    reports = coldstarts.find_reports(session, name, last=count, request_id=request)
    if json:
        session.print_json(f"[{','.join(report.model_dump_json() for report in reports)}]")
    elif compare:
        coldstarts.draw_comparison(session, reports)
    else:
        coldstarts.draw_reports(session, reports)


@app.command("explain")
def _explain(
    context: typer.Context,
    name: Name,
    last: Annotated[int, typer.Option(help="Decisions at most, the newest.", min=1, max=64)] = 10,
    json: Json = False,
) -> None:
    """Say why a model is where it is, and what was decided last."""
    session = session_of(context)
    found = session.platform.explain(name, last=last)
    if json:
        session.print_json(found.model_dump_json())
    else:
        session.out.print(*explaining.explanation(found), sep="\n")


@app.command("wait")
def _wait(
    context: typer.Context,
    name: Name,
    state: Annotated[WaitedFor, typer.Option("--for", help="State to wait for.")],
    timeout: Timeout = 600,
    json: Json = False,
) -> None:
    """Wait until a model is ready, or idle again."""
    session = session_of(context)
    status = wait.wait_for(session, name, ModelState(state.value), timeout_s=timeout)
    if json:
        session.print_json(status.model_dump_json())
    else:
        session.err.print(f"{name} is {status.state.value}")


@app.command("delete")
def _delete(context: typer.Context, name: Name) -> None:
    """Take a model away; running requests may finish."""
    session = session_of(context)
    session.platform.delete(name)
    session.err.print(f"{name} is deleted")


@app.command("eval")
def _eval(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A model's folder.", show_default=False)],
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Format to measure; may be repeated; unset takes all."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read at most.", min=2)] = 4096,
    window: Annotated[int, typer.Option(help="Tokens of context at most.", min=2)] = 512,
    json: Json = False,
) -> None:
    """Compare a model's predictions in several number formats."""
    session = session_of(context)
    command = evaluating.evaluation_command(
        source, [it.value for it in formats or ()], tokens=tokens, window=window
    )
    found = evaluating.evaluate(session, source, command)
    if json:
        session.print_json(found.model_dump_json())
    else:
        session.out.print(*evaluating.draw(found), sep="\n")
        session.err.print(evaluating.summary(found))


@models.command("import")
def _import(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A GGUF file.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
) -> None:
    """Turn a GGUF into a folder that can be deployed."""
    session = session_of(context)
    importing.import_model(session, source, importing.import_command(source, target))
    session.err.print(f"{source.name} is imported: deploy it with source: {target.absolute()}")


@models.command("export")
def _export(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A model's folder.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
) -> None:
    """Write a model with weights of 8 bits."""
    session = session_of(context)
    exporting.export_model(session, source, exporting.export_command(source, target))
    session.err.print(f"{source.name} is exported: deploy it with source: {target.absolute()}")
