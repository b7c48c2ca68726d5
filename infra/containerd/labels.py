"""Labels of snapshots by which pulls, node agents and the snapshotter speak of images and starts.

containerd hands a snapshotter only labels of this prefix.
"""

from typing import Final

# Digest of the only index by which layers may be mounted; unset: whichever lies beside the image.
INDEX: Final = "containerd.io/snapshot/firstlight.index"
# What a container runs, as one line of a shell: starts of equal programs are alike.
ENTRYPOINT: Final = "containerd.io/snapshot/firstlight.entrypoint"
# Set once the container serves.
READY: Final = "containerd.io/snapshot/firstlight.ready"
# In answers only, until READY: what the container has read of its image, a contract (stage.Moved).
READ: Final = "containerd.io/snapshot/firstlight.read"
MOST_ENTRYPOINT_BYTES: Final = 1024
