"""The process that has the bytes: serves the flat folder, and is told what is in it."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import wait
from contextlib import nullcontext
from typing import Any, Final

import structlog

from infra.errors import Invalid
from infra.json_socket import JsonServer, Verb
from snapshotter.fs.catalog import Catalog
from snapshotter.fs.fuse_server import FuseServer
from snapshotter.fs.layout import Layout
from snapshotter.fs.openings import Openings
from snapshotter.fs.ports import OpenFile, ServedFile
from snapshotter.fs.served_files import ServedFiles

log = structlog.get_logger()

_RESTORE_S: Final = 10.0  # well within the time after which a keeper counts as silent


class DataProcess:
    """Serves what the catalog names and what it is told to, until the folder is unmounted.

    Verbs: `add` {name, spec} → head bytes, `remove` {name}, `list` → names, `counts` → requests
    by kind and bytes by origin, `keeper` → id of its process; and those of `further`.
    `on_removed` hears of files that are served no longer.
    """

    def __init__(
        self,
        layout: Layout,
        descriptor: int,
        open_file: OpenFile,
        further: Mapping[str, Verb] | None = None,
        on_removed: Callable[[str], None] = lambda name: None,
        *,
        retry_s: float,
    ) -> None:
        """`retry_s`: how long readers of what was served before wait while its origin is away."""
        self._open_file = open_file
        self._on_removed = on_removed
        self._catalog = Catalog(layout.catalog)
        self._files = ServedFiles()
        self._openings = Openings(self._opened, self._files, retry_s=retry_s)
        self._server = FuseServer(descriptor, self._files, self._openings)
        self._restore()
        verbs: dict[str, Verb] = {
            "add": self._add,
            "remove": self._remove,
            "list": lambda _: [file.name for _, file in self._files.listed()],
            "counts": lambda _: self._server.counts(),
            "keeper": lambda _: os.getppid(),
        }
        all_verbs = verbs | dict(further or {})
        self._control = JsonServer(layout.control, lambda: nullcontext(all_verbs))

    def serve(self) -> None:
        """Returns when the folder is unmounted; raises what ended the service otherwise."""
        self._server.start()
        self._control.start()
        self._server.wait()

    def _restore(self) -> None:
        """Opens what was served before. What takes long, as where an index has to be made anew, is
        served when it is there: its readers wait for it, and nobody else's do.
        """
        catalog = self._catalog.all().items()
        wait([self._openings.begin(name, spec) for name, spec in catalog], timeout=_RESTORE_S)

    def _add(self, question: Mapping[str, Any]) -> int:
        name, spec = _name_of(question), question.get("spec")
        if not isinstance(spec, dict):
            raise Invalid("the spec is no JSON object")
        self._openings.settle(name)
        if (present := self._files.find(name)) is not None:
            return present[1].head_bytes
        file = self._opened(name, spec)
        self._catalog.put(name, spec)
        self._files.add(file)
        self._server.added()
        log.info("file.served", file=name, size=file.size)
        return file.head_bytes

    def _remove(self, question: Mapping[str, Any]) -> None:
        name = _name_of(question)
        self._openings.settle(name)
        self._catalog.remove(name)
        if self._files.remove(name):
            self._server.forget(name)
            self._on_removed(name)
            log.info("file.removed", file=name)

    def _opened(self, name: str, spec: Mapping[str, Any]) -> ServedFile:
        file = self._open_file(name, spec)
        if file.name != name:
            raise Invalid(f"{name} was opened as {file.name}")
        return file


def _name_of(question: Mapping[str, Any]) -> str:
    name = question.get("name")
    if not isinstance(name, str):
        raise Invalid("the name is no text")
    return name
