import pytest

from snapshotter.settings import SnapshotterSettings


@pytest.mark.parametrize(
    ("host", "is_plain"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:5000", True),
        ("127.8.8.8", True),
        ("registry.example", False),
        ("10.0.0.1:5000", False),
        ("inside:5000", True),
        ("inside", False),
        ("localhost.example:80", False),
    ],
)
def test_only_registries_of_this_machine_and_named_ones_are_without_tls(
    monkeypatch: pytest.MonkeyPatch, host: str, is_plain: bool
) -> None:
    monkeypatch.setenv("PLATFORM_SNAPSHOTTER_PLAIN_HTTP", '["inside:5000"]')
    assert SnapshotterSettings().is_plain(host) is is_plain
