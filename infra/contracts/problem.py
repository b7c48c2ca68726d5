"""Problem details for HTTP (RFC 9457), with the OpenAI error object as an extension member."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class OpenAIError(BaseModel):
    """The `error` member that OpenAI clients read."""

    model_config = ConfigDict(frozen=True)

    message: str
    type: str
    param: str | None = None
    code: str


class Problem(BaseModel):
    """One error body: `type` is the kind, `detail` the occurrence, further members its facts."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    hint: str | None = None
    error: OpenAIError

    @property
    def facts(self) -> dict[str, Any]:
        """The extension members that belong to the occurrence."""
        return self.model_extra or {}
