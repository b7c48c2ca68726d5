"""Numbers as people read them."""


def milliseconds(seconds: float) -> str:
    """`412.3 ms`, to one decimal."""
    return f"{seconds * 1000:,.1f} ms"


def elapsed(seconds: float) -> str:
    """`412 ms` below a second, then `5.3 s`: a counter that people watch."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min`, `5 h`, `2 d`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def amount(size: int) -> str:
    """`269.1 MB`, in powers of ten."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} TB"
