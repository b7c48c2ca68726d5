"""The images that containerd has for our snapshotter."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TextIO

import grpc

from infra.containerd.client import CallFailed, Containerd
from infra.containerd.methods import Images
from infra.containerd.protos import images_pb2
from infra.errors import NotFound


@dataclass(frozen=True, slots=True)
class ListedImage:
    """A name and what it stands for."""

    name: str
    digest: str
    created_at: float  # unix seconds


def list_images(containerd: Containerd) -> list[ListedImage]:
    """By name."""
    answer = containerd.call(Images.LIST, images_pb2.ListImagesRequest())
    found = [
        ListedImage(it.name, it.target.digest, it.created_at.ToNanoseconds() / 1e9)
        for it in answer.images
    ]
    return sorted(found, key=lambda image: image.name)


def remove_image(containerd: Containerd, name: str) -> None:
    """Returns when what only this image needed is gone. Raises NotFound."""
    try:
        request = images_pb2.DeleteImageRequest(name=name, sync=True)
        containerd.call(Images.DELETE, request)
    except CallFailed as failed:
        if failed.code is not grpc.StatusCode.NOT_FOUND:
            raise
        raise NotFound(f"there is no image {name}", hint="see `platform images ls`") from failed


def write_images(images: Sequence[ListedImage], out: TextIO, *, as_json: bool) -> None:
    """A line an image, its digest first: names can be of any length."""
    if as_json:
        out.write(json.dumps([asdict(image) for image in images]) + "\n")
    else:
        out.writelines(f"{image.digest}  {image.name}\n" for image in images)
