"""Small OCI images made on the spot, pushed to a registry over plain HTTP."""

import gzip
import hashlib
import http.client
import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
GZIP_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Layer:
    """A layer as it is stored, and its uncompressed tar."""

    blob: bytes
    tar: bytes
    media_type: str = GZIP_LAYER


@dataclass(frozen=True)
class PushedImage:
    """What the registry now has."""

    reference: str
    digest: str
    layers: tuple[str, ...]


class LayerWriter:
    """A tar in memory to which one file after the other is added."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        self.tar = tarfile.TarFile(fileobj=self._bytes, mode="w", format=tarfile.PAX_FORMAT)

    def folder(self, path: str, mode: int = 0o755) -> None:
        self._add(path, tarfile.DIRTYPE, mode=mode)

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        self._add(path, tarfile.REGTYPE, content, mode=mode)

    def symlink(self, path: str, target: str) -> None:
        self._add(path, tarfile.SYMTYPE, linkname=target, mode=0o777)

    def hardlink(self, path: str, target: str) -> None:
        self._add(path, tarfile.LNKTYPE, linkname=target)

    def layer(self) -> Layer:
        self.tar.close()
        tar = self._bytes.getvalue()
        return Layer(gzip.compress(tar, compresslevel=6, mtime=0), tar)

    def _add(self, path: str, kind: bytes, content: bytes = b"", **fields: Any) -> None:
        member = tarfile.TarInfo(path)
        member.type, member.size, member.mtime = kind, len(content), 1_700_000_000
        for name, value in fields.items():
            setattr(member, name, value)
        self.tar.addfile(member, io.BytesIO(content))


def base_layer(*programs: str) -> Layer:
    """A shell, `cat`, `sleep` and `programs` of this machine, with the libraries they need."""
    writer = LayerWriter()
    for folder in ("usr", "usr/bin", "usr/lib", "etc", "proc", "sys", "dev", "tmp"):
        writer.folder(folder)
    for link in ("bin", "lib", "lib64"):
        writer.symlink(link, "usr/bin" if link == "bin" else "usr/lib")
    libraries: dict[str, Path] = {}
    for program in ("sh", "cat", "sleep", *programs):
        path = Path("/bin", program).resolve()
        writer.file(f"usr/bin/{program}", path.read_bytes(), 0o755)
        libraries |= _libraries(path)
    for name, library in sorted(libraries.items()):
        writer.file(f"usr/lib/{name}", library.read_bytes(), 0o755)
    return writer.layer()


def push_image(
    address: str, name: str, layers: Sequence[Layer], *, tag: str = "latest"
) -> PushedImage:
    """Pushes `address/name:tag`; what runs in it is `/bin/sh` unless one says otherwise."""
    described = [_push_blob(address, name, layer.blob, layer.media_type) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer.tar) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _push_blob(address, name, json.dumps(config).encode(), CONFIG),
        "layers": described,
    }
    body = json.dumps(manifest).encode()
    path = f"/v2/{name}/manifests/{tag}"
    _ask(address, "PUT", path, body, {"Content-Type": MANIFEST}, expected=201)
    digests = tuple(layer["digest"] for layer in described)
    return PushedImage(f"{address}/{name}:{tag}", digest_of(body), digests)


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _push_blob(address: str, name: str, blob: bytes, media_type: str) -> dict[str, Any]:
    digest = digest_of(blob)
    location = _ask(address, "POST", f"/v2/{name}/blobs/uploads/", b"", {}, expected=202)
    upload = location.removeprefix(f"http://{address}")
    joint = "&" if "?" in upload else "?"
    headers = {"Content-Type": "application/octet-stream"}
    _ask(address, "PUT", f"{upload}{joint}digest={digest}", blob, headers, expected=201)
    return {"mediaType": media_type, "digest": digest, "size": len(blob)}


def _ask(
    address: str, method: str, path: str, body: bytes, headers: dict[str, str], *, expected: int
) -> str:
    """The `Location` that the registry answers with, if any."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        said = response.read()
        assert response.status == expected, (method, path, response.status, said[:500])
        return response.getheader("Location") or ""
    finally:
        connection.close()


def _libraries(program: Path) -> dict[str, Path]:
    """Shared libraries of a program, the loader included, by file name."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    paths = [word for word in listed.split() if word.startswith("/")]
    return {Path(path).name: Path(path).resolve() for path in paths}
