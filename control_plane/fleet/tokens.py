"""The bearer token of a replica, derived so that a restarted control plane knows it again."""

import hmac
from collections.abc import Callable

from infra.contracts.base import ReplicaId

ReplicaToken = Callable[[ReplicaId], str]


def replica_tokens(secret: bytes) -> ReplicaToken:
    """Tokens that nobody without the secret can guess (HMAC-SHA256 over the replica's id)."""

    def token(replica_id: ReplicaId) -> str:
        return hmac.digest(secret, replica_id.encode(), "sha256").hex()

    return token
