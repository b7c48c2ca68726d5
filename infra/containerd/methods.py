"""The calls of containerd that this platform makes or answers."""

from google.protobuf.empty_pb2 import Empty

from infra.containerd.method import Method
from infra.containerd.protos import (
    containers_pb2,
    content_pb2,
    cri_pb2,
    diff_pb2,
    images_pb2,
    leases_pb2,
    namespaces_pb2,
    snapshots_pb2,
    tasks_pb2,
)

_SNAPSHOTS = "containerd.services.snapshots.v1.Snapshots"
_CONTENT = "containerd.services.content.v1.Content"
_IMAGES = "containerd.services.images.v1.Images"
_LEASES = "containerd.services.leases.v1.Leases"
_DIFF = "containerd.services.diff.v1.Diff"
_CONTAINERS = "containerd.services.containers.v1.Containers"
_TASKS = "containerd.services.tasks.v1.Tasks"
_NAMESPACES = "containerd.services.namespaces.v1.Namespaces"
_CRI_IMAGES = "runtime.v1.ImageService"


class Snapshots:
    """A snapshotter offers these; containerd itself offers them for all its snapshotters."""

    SERVICE = _SNAPSHOTS
    PREPARE = Method(
        _SNAPSHOTS,
        "Prepare",
        snapshots_pb2.PrepareSnapshotRequest,
        snapshots_pb2.PrepareSnapshotResponse,
    )
    VIEW = Method(
        _SNAPSHOTS, "View", snapshots_pb2.ViewSnapshotRequest, snapshots_pb2.ViewSnapshotResponse
    )
    MOUNTS = Method(_SNAPSHOTS, "Mounts", snapshots_pb2.MountsRequest, snapshots_pb2.MountsResponse)
    COMMIT = Method(_SNAPSHOTS, "Commit", snapshots_pb2.CommitSnapshotRequest, Empty)
    REMOVE = Method(_SNAPSHOTS, "Remove", snapshots_pb2.RemoveSnapshotRequest, Empty)
    STAT = Method(
        _SNAPSHOTS, "Stat", snapshots_pb2.StatSnapshotRequest, snapshots_pb2.StatSnapshotResponse
    )
    UPDATE = Method(
        _SNAPSHOTS,
        "Update",
        snapshots_pb2.UpdateSnapshotRequest,
        snapshots_pb2.UpdateSnapshotResponse,
    )
    LIST = Method(  # answers in a stream
        _SNAPSHOTS, "List", snapshots_pb2.ListSnapshotsRequest, snapshots_pb2.ListSnapshotsResponse
    )
    USAGE = Method(_SNAPSHOTS, "Usage", snapshots_pb2.UsageRequest, snapshots_pb2.UsageResponse)
    CLEANUP = Method(_SNAPSHOTS, "Cleanup", snapshots_pb2.CleanupRequest, Empty)


class Content:
    """The store of blobs."""

    INFO = Method(_CONTENT, "Info", content_pb2.InfoRequest, content_pb2.InfoResponse)
    UPDATE = Method(_CONTENT, "Update", content_pb2.UpdateRequest, content_pb2.UpdateResponse)
    DELETE = Method(_CONTENT, "Delete", content_pb2.DeleteContentRequest, Empty)
    READ = Method(  # answers in a stream
        _CONTENT, "Read", content_pb2.ReadContentRequest, content_pb2.ReadContentResponse
    )
    WRITE = Method(  # a stream both ways
        _CONTENT, "Write", content_pb2.WriteContentRequest, content_pb2.WriteContentResponse
    )
    ABORT = Method(_CONTENT, "Abort", content_pb2.AbortRequest, Empty)


class Images:
    """Names of images and what they stand for."""

    GET = Method(_IMAGES, "Get", images_pb2.GetImageRequest, images_pb2.GetImageResponse)
    LIST = Method(_IMAGES, "List", images_pb2.ListImagesRequest, images_pb2.ListImagesResponse)
    CREATE = Method(
        _IMAGES, "Create", images_pb2.CreateImageRequest, images_pb2.CreateImageResponse
    )
    UPDATE = Method(
        _IMAGES, "Update", images_pb2.UpdateImageRequest, images_pb2.UpdateImageResponse
    )
    DELETE = Method(_IMAGES, "Delete", images_pb2.DeleteImageRequest, Empty)


class Leases:
    """What is made under a lease is not collected while it lasts."""

    CREATE = Method(_LEASES, "Create", leases_pb2.CreateRequest, leases_pb2.CreateResponse)
    DELETE = Method(_LEASES, "Delete", leases_pb2.DeleteRequest, Empty)
    LIST = Method(_LEASES, "List", leases_pb2.ListRequest, leases_pb2.ListResponse)


class Diff:
    """Unpacks layers."""

    APPLY = Method(_DIFF, "Apply", diff_pb2.ApplyRequest, diff_pb2.ApplyResponse)


class Containers:
    """What is known of containers."""

    GET = Method(
        _CONTAINERS,
        "Get",
        containers_pb2.GetContainerRequest,
        containers_pb2.GetContainerResponse,
    )
    LIST = Method(
        _CONTAINERS,
        "List",
        containers_pb2.ListContainersRequest,
        containers_pb2.ListContainersResponse,
    )
    CREATE = Method(
        _CONTAINERS,
        "Create",
        containers_pb2.CreateContainerRequest,
        containers_pb2.CreateContainerResponse,
    )
    DELETE = Method(_CONTAINERS, "Delete", containers_pb2.DeleteContainerRequest, Empty)


class Tasks:
    """What runs in containers."""

    CREATE = Method(_TASKS, "Create", tasks_pb2.CreateTaskRequest, tasks_pb2.CreateTaskResponse)
    START = Method(_TASKS, "Start", tasks_pb2.StartRequest, tasks_pb2.StartResponse)
    DELETE = Method(_TASKS, "Delete", tasks_pb2.DeleteTaskRequest, tasks_pb2.DeleteResponse)
    GET = Method(_TASKS, "Get", tasks_pb2.GetRequest, tasks_pb2.GetResponse)
    LIST = Method(_TASKS, "List", tasks_pb2.ListTasksRequest, tasks_pb2.ListTasksResponse)
    KILL = Method(_TASKS, "Kill", tasks_pb2.KillRequest, Empty)
    WAIT = Method(_TASKS, "Wait", tasks_pb2.WaitRequest, tasks_pb2.WaitResponse)


class Namespaces:
    """What one containerd keeps for several users."""

    CREATE = Method(
        _NAMESPACES,
        "Create",
        namespaces_pb2.CreateNamespaceRequest,
        namespaces_pb2.CreateNamespaceResponse,
    )


class CriImages:
    """Images as Kubernetes pulls them."""

    PULL = Method(_CRI_IMAGES, "PullImage", cri_pb2.PullImageRequest, cri_pb2.PullImageResponse)
    REMOVE = Method(
        _CRI_IMAGES, "RemoveImage", cri_pb2.RemoveImageRequest, cri_pb2.RemoveImageResponse
    )
