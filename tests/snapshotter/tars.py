"""Tars made header by header, so that they can be wrong."""

import gzip
import io
import tarfile
from pathlib import Path
from random import Random

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes = b"file",
    *,
    kind: bytes = b"0",
    size: int = 0,
    link: bytes = b"",
    mode: bytes = b"0000644",
    raw_size: bytes | None = None,
    prefix: bytes = b"",
) -> bytes:
    """One ustar header with a right checksum."""
    block = bytearray(BLOCK)
    fields = (
        (0, name), (100, mode), (108, b"0001750"), (116, b"0000144"),
        (124, raw_size or b"%011o" % size), (136, b"14000000000"), (148, b" " * 8),
        (156, kind), (157, link), (257, b"ustar\x0000"), (345, prefix),
    )  # fmt: skip
    for offset, value in fields:
        block[offset : offset + len(value)] = value
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def pax(kind: bytes = b"x", **records: bytes) -> bytes:
    """A pax header; double underscores stand for dots in keys."""
    body = b""
    for key, value in records.items():
        text = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(text)
        while len(str(length)) + len(text) != length:
            length = len(str(length)) + len(text)
        body += str(length).encode() + text
    return header(b"pax", kind=kind, size=len(body)) + padded(body)


def file(name: bytes, content: bytes = b"") -> bytes:
    return header(name, size=len(content)) + padded(content)


def noise(length: int, seed: int = 0) -> bytes:
    """Bytes that no compressor makes smaller."""
    return Random(seed).randbytes(length)


def words(length: int, seed: int = 0) -> bytes:
    """Bytes that compress about as well as programs do."""
    letters = bytes(min(place * place >> 10, 63) for place in range(256))
    return Random(seed).randbytes(length).translate(letters)


def layer_tar(files: dict[str, bytes]) -> bytes:
    """A layer as an image builder writes it, its folders first."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folders = sorted({str(parent) for name in files for parent in Path(name).parents})
        for folder in folders[1:]:
            member = tarfile.TarInfo(folder)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def gzipped(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)
