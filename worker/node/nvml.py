"""GPUs as NVIDIA's management library (NVML) tells of them."""

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import structlog

from infra.contracts.base import GpuId
from infra.contracts.node import Gpu
from infra.gpus import gpu_kind
from worker.node.machine import GpuReader, NoGpus

log = structlog.get_logger()

# Errors of a program and not of its GPU; NVIDIA's device plugin for Kubernetes ignores the same.
HARMLESS_XIDS = frozenset({13, 31, 43, 45, 68, 109})
FELL_OFF_THE_BUS = 79
_MOST_EVENTS = 1000  # in one reading


def open_gpus(visible: tuple[str, ...] | None) -> GpuReader:
    """The GPUs of this machine, of those that are `visible`: ids or places, None for all.

    Never raises: without library or driver there are none, which is said once. May block for as
    long as a driver takes to load.
    """
    try:
        import pynvml  # type: ignore[import-untyped]
    except ImportError:
        log.info("gpus.none", why="nvidia-ml-py is not installed")
        return NoGpus()
    try:
        pynvml.nvmlInit()
        return NvmlGpus(pynvml, visible)
    except pynvml.NVMLError as error:
        log.info("gpus.none", why=str(error))
        return NoGpus()


def gpus_ahead(visible: tuple[str, ...] | None) -> Callable[[], GpuReader]:
    """Begins to open them at once, in a thread that nobody has to wait for; the result waits."""
    opened: Future[GpuReader] = Future()

    def open_them() -> None:
        try:
            opened.set_result(open_gpus(visible))
        except BaseException as error:
            opened.set_exception(error)

    threading.Thread(target=open_them, name="gpus-ahead", daemon=True).start()
    return opened.result


@dataclass(slots=True)
class _Device:
    """A GPU, or a part of the GPU `parent`: errors are those of the whole."""

    handle: Any
    parent: Any
    last: Gpu
    hurt_by: int | None = None  # the XID


class NvmlGpus:
    """Adapter of GpuReader. Belongs to one thread.

    A device that cannot be read is in trouble for as long as that lasts; a grave XID is remembered
    until the agent starts again.
    """

    def __init__(self, nvml: Any, visible: tuple[str, ...] | None) -> None:
        """Raises NVMLError when the library tells nothing at all."""
        self._nvml = nvml
        self._driver = str(nvml.nvmlSystemGetDriverVersion())
        self._devices = list(self._find(visible))
        self._events = self._listen()
        kinds = sorted({device.last.kind for device in self._devices})
        log.info("gpus.found", driver=self._driver, gpus=len(self._devices), kinds=kinds)

    def read(self) -> tuple[Gpu, ...]:
        self._hear_events()
        return tuple(self._read(device) for device in self._devices)

    def _find(self, visible: tuple[str, ...] | None) -> Iterator[_Device]:
        for place in range(self._nvml.nvmlDeviceGetCount()):
            try:
                whole = self._nvml.nvmlDeviceGetHandleByIndex(place)
                handles = self._parts(whole)
                found = [self._meet(whole, handle) for handle in handles]
            except self._nvml.NVMLError as error:
                log.warning("gpu.unknown", place=place, why=str(error))
                continue
            for device in found:
                if visible is None or is_among(visible, place, device.last.gpu_id):
                    yield device

    def _parts(self, whole: Any) -> list[Any]:
        """The parts of a GPU that is divided (MIG), or the GPU itself."""
        nvml = self._nvml
        mode = self._if_known(
            lambda: nvml.nvmlDeviceGetMigMode(whole)[0], nvml.NVML_DEVICE_MIG_DISABLE
        )
        if mode != nvml.NVML_DEVICE_MIG_ENABLE:
            return [whole]
        parts = []
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(whole)):
            try:
                parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, place))
            except nvml.NVMLError_NotFound:
                continue
        return parts

    def _meet(self, whole: Any, handle: Any) -> _Device:
        name = str(self._nvml.nvmlDeviceGetName(handle))
        gpu = Gpu(
            gpu_id=GpuId(self._nvml.nvmlDeviceGetUUID(handle)),
            kind=gpu_kind(name),
            name=name,
            memory_bytes=self._memory(handle).total,
            driver=self._driver,
        )
        return _Device(handle, whole, gpu)

    def _read(self, device: _Device) -> Gpu:
        is_lost = device.hurt_by == FELL_OFF_THE_BUS
        try:
            used_bytes = self._memory(device.handle).used
            trouble = self._broken_memory(device.parent)
        except self._nvml.NVMLError as error:
            is_lost = is_lost or isinstance(error, self._nvml.NVMLError_GpuIsLost)
            trouble = f"NVML: {error}"
        else:
            device.last = device.last.model_copy(update={"used_bytes": used_bytes})
        if device.hurt_by is not None:
            trouble = f"XID {device.hurt_by}"
        return device.last.model_copy(update={"trouble": trouble, "is_lost": is_lost})

    def _memory(self, handle: Any) -> Any:
        """Total and used bytes; what the driver keeps for itself counts as used in old versions."""
        nvml = self._nvml
        try:
            return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported):
            return nvml.nvmlDeviceGetMemoryInfo(handle)

    def _broken_memory(self, whole: Any) -> str | None:
        nvml = self._nvml
        num_errors = self._if_known(
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                whole, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            0,
        )
        *_, is_pending, has_failed = self._if_known(
            lambda: nvml.nvmlDeviceGetRemappedRows(whole), (0, 0, 0, 0)
        )
        if has_failed:
            return "its memory is broken beyond repair"
        if num_errors or is_pending:
            return "its memory had errors that could not be corrected: it has to be reset"
        return None

    def _listen(self) -> Any:
        """The set of events in which grave errors arrive; None where there is no such thing."""
        nvml = self._nvml
        try:
            events = nvml.nvmlEventSetCreate()
        except nvml.NVMLError:
            return None
        for whole in {_address(device.parent): device.parent for device in self._devices}.values():
            try:
                nvml.nvmlDeviceRegisterEvents(whole, nvml.nvmlEventTypeXidCriticalError, events)
            except nvml.NVMLError as error:
                log.info("gpu.without-events", why=str(error))
        return events

    def _hear_events(self) -> None:
        if self._events is None:
            return
        for _ in range(_MOST_EVENTS):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError:  # none is waiting, or none can be heard now
                return
            if event.eventData not in HARMLESS_XIDS:
                self._hurt(event.device, event.eventData)

    def _hurt(self, whole: Any, xid: int) -> None:
        for device in self._devices:
            if _address(device.parent) == _address(whole):
                log.error("gpu.hurt", gpu=device.last.gpu_id, xid=xid)
                device.hurt_by = xid

    def _if_known(self, ask: Callable[[], Any], otherwise: Any) -> Any:
        """The answer, where this device and this driver have one."""
        try:
            return ask()
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return otherwise


def is_among(visible: tuple[str, ...], place: int, gpu_id: GpuId) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names the device, by its place or the beginning of its id."""
    return str(place) in visible or any(
        gpu_id.startswith(name) for name in visible if name.startswith(("GPU-", "MIG-"))
    )


def _address(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value
