"""Small makers of specs, revisions and nodes."""

from hashlib import sha256
from typing import Any

from control_plane.deployments.store import RevisionDraft
from infra.contracts.base import ModelName, NodeId, RevisionName
from infra.contracts.image import ResolvedImage
from infra.contracts.model_spec import ModelSpec
from infra.contracts.node import ClockReading, NodeRegistration, Sleeper
from infra.contracts.revision import ModelFacts, ResolvedSource, Revision, SourceFile

SOURCE = "file:///models/tiny"
GIB = 1 << 30


def a_source(digest: str = "sha256:00") -> ResolvedSource:
    return ResolvedSource(
        uri=SOURCE, digest=digest, files=(SourceFile(path="model.safetensors", size=1000),)
    )


def some_facts(weight_bytes: int = 256 << 20) -> ModelFacts:
    return ModelFacts(
        architecture="LlamaForCausalLM",
        context_tokens=2048,
        vocabulary=49152,
        weight_bytes=weight_bytes,
        hidden_size=576,
        longest_token_bytes=64,
    )


def a_spec(name: str = "chat", **sections: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": name, "source": SOURCE, **sections})


def a_draft(name: str = "chat", digest: str = "sha256:00", **sections: Any) -> RevisionDraft:
    return RevisionDraft.of(a_spec(name, **sections), a_source(digest), some_facts(), now=1.0)


def a_revision(name: str = "chat", number: int = 1, **sections: Any) -> Revision:
    return a_draft(name, **sections).numbered(number)


def an_image(name: str = "worker", *, is_asked_for: bool = True) -> ResolvedImage:
    digest = sha256(name.encode()).hexdigest()
    return ResolvedImage(reference=f"r.io/{name}@sha256:{digest}", is_asked_for=is_asked_for)


def with_image(revision: Revision, image: ResolvedImage) -> Revision:
    return revision.model_copy(update={"image": image})


def a_registration(node: str = "n1", **changes: Any) -> NodeRegistration:
    facts: dict[str, Any] = {
        "node_id": node,
        "cpus": 2,
        "memory_bytes": 16 * GIB,
        "clock": ClockReading(wall=0, monotonic=0, boot_id="b"),
        "started_at": 0.0,
    }
    return NodeRegistration.model_validate(facts | changes)


def a_sleeper(revision: str = "chat@1", memory_bytes: int = GIB) -> Sleeper:
    return Sleeper(
        revision=RevisionName(revision), memory_bytes=memory_bytes, since=0.0, until=60.0
    )


CHAT = ModelName("chat")
N1 = NodeId("n1")
