"""What a client may ask of an embedding, in OpenAI's words."""

from typing import Annotated, Literal, final

from pydantic import Field

from infra.contracts.generation import TokenIds
from infra.contracts.sampling import Priority, Wire

MAX_INPUTS = 2048
MAX_DIMENSIONS = 1 << 16

Input = (
    str
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    | TokenIds
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
)


@final
class EmbeddingsRequest(Wire):
    """`POST /v1/embeddings`; every input gets a vector."""

    model: str = Field(max_length=256, description="A deployed model's name.")
    input: Input = Field(description="Text, token ids, or a list of up to 2,048 of either.")
    encoding_format: Literal["float", "base64"] | None = Field(
        default=None, description="`float` for numbers, `base64` for their little-endian float32."
    )
    dimensions: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DIMENSIONS,
        description="First numbers of each vector that are kept, scaled to length 1 again.",
    )
    priority: Priority = None

    @property
    def inputs(self) -> list[str] | list[list[int]]:
        """Each by itself."""
        match self.input:
            case str(text):
                return [text]
            case [int(), *_] as token_ids:
                return [token_ids]  # type: ignore[return-value]
            case many:
                return many  # type: ignore[return-value]
