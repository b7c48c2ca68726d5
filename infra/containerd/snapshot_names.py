"""What the snapshots of an image's layers are called."""


def snapshot_name(chain_id: str, index: str | None) -> str:
    """Of a layer with those below it; `index` is the digest that the image's index is pinned to.

    Layers of an image without a pin are called as by any other client of containerd. Those of one
    that has a pin are never taken for them: they may be mounted by an index of somebody else's.
    """
    return chain_id if index is None else f"{chain_id}@{index}"
