"""`platform deploy`: publishes a model.yaml and follows it until it can be called."""

import sys
from pathlib import Path

from control_plane.cli.failure import CommandFailed, from_platform_error
from control_plane.cli.imaging import describe_image, follow
from control_plane.cli.releases import split_text
from control_plane.cli.session import Session
from control_plane.cli.units import amount
from control_plane.cli.wait import wait_for
from control_plane.cli.waiting import Waiting
from control_plane.cli.warming import switch
from infra.contracts.model_spec import ModelSpec
from infra.contracts.revision import ModelState, ModelStatus
from infra.errors import SpecInvalid
from infra.spec_file import load_spec

STANDARD_INPUT = Path("-")
READ_BYTES = 1 << 20


def deploy(
    session: Session,
    file: Path,
    *,
    takes_traffic: bool,
    is_now: bool,
    is_waiting: bool,
    timeout_s: float,
) -> ModelStatus:
    """Publishes the file's spec; waits until its image is indexed, and where replicas are always
    kept, until one is ready.

    Unless `is_now`, a model that is served goes on being served until the new revision is warm.
    """
    spec = read_spec(file)
    with Waiting(session.err, f"deploying {spec.name}", now=session.now) as waiting:
        waiting.show(f"reading {spec.source}")
        status = session.platform.deploy(spec, takes_traffic=takes_traffic, is_now=is_now)
    if is_waiting:
        status = follow(session, status, timeout_s=timeout_s)
    if takes_traffic and _share(status) < 100:
        switch(session, spec.name, {status.revision: 100}, timeout_s=timeout_s)
        status = session.platform.status(spec.name)
    if is_waiting and takes_traffic and spec.scaling.min > 0:
        status = wait_for(session, spec.name, ModelState.READY, timeout_s=timeout_s)
    return status


def _share(status: ModelStatus) -> int:
    """How many of a hundred requests go to the revision."""
    return sum(it.percent for it in status.traffic if it.revision == status.revision)


def read_spec(file: Path) -> ModelSpec:
    """The spec in a file, or on standard input for `-`; its file sources made absolute."""
    is_piped = file == STANDARD_INPUT
    name = "standard input" if is_piped else str(file)
    try:
        if is_piped:
            content = sys.stdin.buffer.read(READ_BYTES)
        else:
            with file.open("rb") as opened:
                content = opened.read(READ_BYTES)
        text = content.decode()
    except OSError as error:
        raise CommandFailed(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandFailed(f"{name} is not UTF-8 at byte {error.start}") from error
    folder = Path.cwd() if is_piped else file.parent.absolute()
    try:
        return load_spec(text, filename=name, folder=folder)
    except SpecInvalid as error:
        raise from_platform_error(error, filename=name) from error


def describe_deployed(status: ModelStatus, *, sends_key: bool) -> str:
    """What was deployed and how to call it."""
    facts = status.facts
    if not _share(status):
        return _describe_dark(status)
    key = ' -H "Authorization: Bearer $PLATFORM_API_KEY"' if sends_key else ""
    return (
        f"{status.revision} is deployed: {facts.architecture}, {amount(facts.weight_bytes)} of "
        f"weights, {facts.context_tokens:,} tokens of context\n"
        f"  state  {status.state.value}\n{_described_image(status)}"
        f"  url    {status.url}\n"
        f"  try    platform invoke {status.name} --prompt Hello --stream\n"
        f'  curl   curl {status.url}{key} -d \'{{"prompt": "Hello", "max_tokens": 32}}\'\n'
    )


def _describe_dark(status: ModelStatus) -> str:
    """What to do with a revision that gets no request yet."""
    leading = status.traffic[0].revision
    return (
        f"{status.revision} is deployed and gets no request; they go to "
        f"{split_text(status.traffic)}\n{_described_image(status)}"
        f"  try    platform traffic {status.name} {leading}=90 {status.revision}=10\n"
        f"  all    platform traffic {status.name} {status.revision}=100\n"
    )


def _described_image(status: ModelStatus) -> str:
    return "" if status.image is None else f"  image  {describe_image(status.image)}\n"
