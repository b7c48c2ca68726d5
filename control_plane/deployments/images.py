"""The port that pins the image of a model's containers, and a table of images as its fake."""

from collections.abc import Mapping
from typing import Protocol

from infra.contracts.image import ResolvedImage
from infra.errors import ImageInvalid


class ImageResolver(Protocol):
    """Turns a tag into the digest that it means now."""

    async def resolve(self, image: str | None) -> ResolvedImage | None:
        """What containers of a model run that names `image`, or none: then the platform's own, and
        None where that is left to the nodes.

        Raises ImageInvalid where it does not exist or could not be run, ImageUnavailable where
        its registry does not tell; may be repeated.
        """
        ...


class KnownImages:
    """A resolver of images it was given: reference to pinned one, None to the platform's own."""

    def __init__(self, images: Mapping[str | None, str]) -> None:
        self.images = dict(images)

    async def resolve(self, image: str | None) -> ResolvedImage | None:
        pinned = self.images.get(image)
        if pinned is not None:
            return ResolvedImage(reference=pinned, is_asked_for=image is not None)
        if image is None:
            return None
        raise ImageInvalid(f"{image} is not in its registry", param="image")
