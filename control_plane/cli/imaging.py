"""What is said of a model's image: whether its layers are mounted, and how far its index is."""

from control_plane.cli.session import Session, printable
from control_plane.cli.waiting import Waiting
from infra.contracts.image import ImageState, ImageStatus
from infra.contracts.revision import ModelStatus

POLL_S = 0.5
COMING = frozenset({ImageState.WAITING, ImageState.INDEXING})


def follow(session: Session, status: ModelStatus, *, timeout_s: float) -> ModelStatus:
    """Shows how far the index of the revision's image is, until it is made, cannot be made or takes
    longer than that: the model can be called meanwhile, and its starts then download the image."""
    image = status.image
    if image is None or image.state not in COMING:
        return status
    give_up_at = session.now() + timeout_s
    with Waiting(session.err, f"deployed {status.revision}", now=session.now) as waiting:
        while image is not None and image.state in COMING and session.now() < give_up_at:
            waiting.show(printable(image.detail))
            session.pause(POLL_S)
            kept = session.platform.revisions(status.name)
            image = next((it.image for it in kept if it.revision == status.revision), None)
    return status.model_copy(update={"image": image})


def describe_image(image: ImageStatus) -> str:
    """What it is and how it comes to a node, in a line or two."""
    said = f"{image.reference}: {image.detail}"
    return printable(said if image.hint is None else f"{said}\nhint: {image.hint}")


def is_worth_a_line(image: ImageStatus) -> bool:
    """Whether a list of models says it: while it is not settled, or where something is wrong."""
    return image.state in COMING or (image.state is ImageState.WHOLE and image.hint is not None)
