"""What the environment may say to the command line; nothing else in it reads it."""

import os
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_URL = "http://127.0.0.1:8470"


class CliSettings(BaseSettings):
    """Every field can be set as `PLATFORM_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="PLATFORM_", frozen=True, extra="ignore")

    url: str = Field(
        default=DEFAULT_URL,
        pattern=r"^https?://[^/?#\s]+/?$",
        description="Where the platform answers.",
    )
    api_key: SecretStr | None = Field(default=None, description="Key the platform asks of clients.")


def login_file() -> Path:
    """Where `platform login` remembers a platform and its key."""
    folder = os.environ.get("XDG_CONFIG_HOME")  # noqa: TID251 - settings may
    return (Path(folder) if folder else Path("~/.config").expanduser()) / "firstlight/login.json"
