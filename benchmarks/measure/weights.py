"""How many bytes and products a token costs, from the model's own files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.evaluation.evaluate import step_bytes
from worker.models.config import read_config


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Counts of one dense decoder model."""

    parameters: int
    embedding_parameters: int
    int4_bytes: int
    kv_values_per_token: int

    def weight_bytes(self, number_format: str) -> float | None:
        """What a step reads of the weights; None where engines mix formats of their own."""
        match number_format:
            case "bf16":
                return 2.0 * self.parameters
            case "int8":
                return 1.0 * self.parameters
            case _:
                return None

    def our_weight_bytes(self, number_format: str) -> float:
        """As we hold them: of int4 the layers that bear it have 5 bits with scales, others 8."""
        known = self.weight_bytes(number_format)
        return self.int4_bytes if known is None else known

    @property
    def kv_bytes_per_token(self) -> int:
        """At bf16."""
        return 2 * self.kv_values_per_token

    @property
    def operations_per_token(self) -> float:
        """Of the linear layers in a prompt, whose logits are computed for its last token only."""
        return 2.0 * (self.parameters - self.embedding_parameters)


def read_facts(model: Path) -> ModelFacts:
    """Of a folder with tied embeddings in safetensors."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return ModelFacts(
        parameters=sum(map(_parameters, sorted(model.glob("*.safetensors")))),
        embedding_parameters=config["vocab_size"] * config["hidden_size"],
        int4_bytes=step_bytes(model, read_config(model), "int4"),
        kv_values_per_token=2
        * config["num_hidden_layers"]
        * config.get("num_key_value_heads", heads)
        * head_dim,
    )


def _parameters(file: Path) -> int:
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    header.pop("__metadata__", None)
    total = 0
    for tensor in header.values():
        count = 1
        for side in tensor["shape"]:
            count *= side
        total += count
    return total
