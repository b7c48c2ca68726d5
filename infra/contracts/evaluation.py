"""What `platform eval` finds out about a model's number formats."""

from typing import Literal

from pydantic import Field

from infra.contracts.base import Contract

FormatName = Literal["bf16", "int8", "int4", "int8-kv"]


class FormatQuality(Contract):
    """One number format, measured on the text and against the reference, the first in the list."""

    name: str = Field(description="A FormatName, or `stored` for a checkpoint's own format.")
    perplexity: float = Field(description="exp of the mean negative log-likelihood of a token.")
    change: float = Field(description="Of the perplexity, as a fraction of the reference's.")
    agreement: float = Field(
        description="Fraction of tokens whose likeliest successor is the same."
    )
    divergence: float = Field(
        description="Mean Kullback-Leibler divergence from the reference, in nats."
    )
    step_bytes: int = Field(description="Bytes of weights that each step reads.")
    most_change: float | None = Field(description="The change that is promised; None: none is.")

    @property
    def keeps_promise(self) -> bool:
        return self.most_change is None or self.change <= self.most_change


class Evaluation(Contract):
    """All formats on the same text."""

    tokens: int = Field(description="Tokens that were predicted.")
    window: int = Field(description="Tokens of context at most.")
    kernels: str
    formats: tuple[FormatQuality, ...]
