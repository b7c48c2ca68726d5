"""One model's files, open: its config, its weights, and what earlier replicas packed of them."""

import filecmp
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from infra.contracts.model_spec import EngineSettings
from infra.contracts.revision import ResolvedSource
from infra.errors import SourceInvalid
from infra.sources.landing import Landing
from infra.sources.port import OnProgress, WeightStream
from worker.models.config import ModelConfig, read_config
from worker.models.decoder import Decoder
from worker.models.pack import Pack
from worker.models.registry import build_model, open_pack
from worker.parallel.group import ALONE, Group
from worker.tokenizer.tokenizer import Tokenizer
from worker.weights.loader import Weights, open_weights
from worker.weights.packed_store import PackedStore

PACKED = "packed"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model is built of; nothing is read yet that is only mapped."""

    folder: Path
    source: ResolvedSource
    settings: EngineSettings
    config: ModelConfig
    weights: Weights
    pack: Pack | None

    @classmethod
    def open(
        cls,
        folder: Path,
        source: ResolvedSource,
        settings: EngineSettings,
        store: PackedStore,
        on_progress: OnProgress,
        *,
        gpus: int,
        rank: int = 0,
        stream: WeightStream | None = None,
        spare: Landing | None = None,
    ) -> Self:
        """Of a `stream` the headers are waited for; what a file is read into takes the place of a
        `spare`. Raises SourceInvalid and UnsupportedModel.
        """
        config = read_config(folder)
        pack = open_pack(config, settings, store, source_digest=source.digest, gpus=gpus, rank=rank)
        is_packed = pack is not None and pack.found_bytes > 0
        reads_all = not is_packed and settings.tensor_parallel == 1
        weights = open_weights(
            folder, on_progress, reads_ahead=reads_all, stream=stream, spare=spare
        )
        return cls(folder, source, settings, config, weights, pack)

    @property
    def num_bytes(self) -> int:
        """Of the weights as they are mapped."""
        return self._packed_bytes or self.weights.total_bytes

    @property
    def is_packed(self) -> bool:
        """Whether an earlier replica left most of it as it is computed with."""
        return self._packed_bytes > 0

    def build(self, *, gpus: int = 0, group: Group = ALONE) -> Decoder:
        """This rank's share of the model; see build_model."""
        return build_model(
            self.config, self.weights, self.settings, gpus=gpus, group=group, pack=self.pack
        )

    def settle(self, *, now: float) -> None:
        """Keeps what was packed for the next replica."""
        if self.pack is not None:
            self.pack.save(now=now)

    def check_drafts_for(self, answering: "ModelFiles", tokenizer: Tokenizer) -> None:
        """Raises SourceInvalid unless both models have the same tokens."""
        has_same_file = filecmp.cmp(
            self.folder / "tokenizer.json", answering.folder / "tokenizer.json", shallow=False
        )
        if self.config.vocabulary == answering.config.vocabulary and (
            has_same_file or Tokenizer.load(self.folder).spells_like(tokenizer)
        ):
            return
        raise SourceInvalid(
            f"{self.source.uri} has other tokens than {answering.source.uri}",
            hint="a draft model has the tokenizer of the model it guesses for",
            param="engine.draft_source",
        )

    @property
    def _packed_bytes(self) -> int:
        return 0 if self.pack is None else self.pack.found_bytes
