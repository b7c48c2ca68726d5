"""All units of machines: what fails at boot is tried again, whatever it waits for."""

from configparser import ConfigParser
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "infra" / "systemd").rglob("*.service"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.parent.name}/{unit.stem}")
def test_a_unit_that_starts_again_never_gives_up(unit: Path) -> None:
    """Five failures in ten seconds are the end of a unit otherwise, as in the first seconds of a
    boot in which nobody answers yet."""
    sections = ConfigParser(strict=False, interpolation=None)
    sections.read(unit)

    restarts = sections["Service"].get("Restart", "no") != "no"

    assert sections["Unit"].get("StartLimitIntervalSec", "10") == ("0" if restarts else "10")
