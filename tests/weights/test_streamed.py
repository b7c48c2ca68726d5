"""Weights as tensors while they are on their way: the same as of files that are here."""

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infra.errors import SourceInvalid, WeightsUnavailable
from worker.weights.loader import open_weights

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.arange(100, dtype=torch.bfloat16),
}


class HandStream:
    """Files whose bytes come when the test says so."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self._memory = {name: memoryview(bytearray(len(it))) for name, it in files.items()}
        self._here = dict.fromkeys(files, 0)
        self._changed = threading.Condition()
        self._end: Exception | None = None
        self.waited: list[tuple[str, int, int]] = []

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._files)

    def bring(self, name: str, stop: int | None = None) -> None:
        """Bytes up to `stop` are here."""
        with self._changed:
            stop = len(self._files[name]) if stop is None else stop
            self._memory[name][:stop] = self._files[name][:stop]
            self._here[name] = stop
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        with self._changed:
            self._end = error
            self._changed.notify_all()

    def memory(self, name: str) -> memoryview:
        return self._memory[name]

    def wait(self, name: str, start: int, stop: int) -> None:
        with self._changed:
            self.waited.append((name, start, stop))
            self._changed.wait_for(lambda: self._here[name] >= stop or self._end is not None)
            if self._end is not None:
                raise self._end

    def finish(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    save_file(TENSORS, tmp_path / "made")
    return (tmp_path / "made").read_bytes()


def header_end(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def test_the_headers_are_all_that_is_waited_for_before_a_tensor_is_asked_for(
    tmp_path: Path, content: bytes
) -> None:
    stream = HandStream({"model.safetensors": content})
    stream.bring("model.safetensors", header_end(content))

    weights = open_weights(tmp_path, lambda fraction: None, stream=stream)

    assert "a" in weights and weights.total_bytes == len(content)
    stream.bring("model.safetensors")
    assert torch.equal(weights.take("a", (3, 4), torch.float32), TENSORS["a"])
    assert torch.equal(weights.take("b", (100,), torch.bfloat16), TENSORS["b"])
    part = weights.part("a", (3, 4), [range(1, 2)], range(1, 3), torch.float32)
    assert part.tolist() == [[5.0, 6.0]]


def test_tensors_are_views_of_where_the_bytes_came(tmp_path: Path, content: bytes) -> None:
    stream = HandStream({"model.safetensors": content})
    stream.bring("model.safetensors")
    weights = open_weights(tmp_path, lambda fraction: None, stream=stream)
    tensor = weights.take("a", (3, 4), torch.float32)
    start = torch.frombuffer(stream.memory("model.safetensors"), dtype=torch.uint8).data_ptr()
    assert start < tensor.data_ptr() < start + len(content)


def test_a_tensor_is_waited_for_until_its_last_byte_is_here(tmp_path: Path, content: bytes) -> None:
    stream = HandStream({"model.safetensors": content})
    stream.bring("model.safetensors", header_end(content))
    weights = open_weights(tmp_path, lambda fraction: None, stream=stream)
    taken: list[torch.Tensor] = []
    taking = threading.Thread(
        target=lambda: taken.append(weights.take("b", (100,), torch.bfloat16))
    )
    taking.start()
    stream.bring("model.safetensors", len(content) - 1)
    assert not taken
    stream.bring("model.safetensors")
    taking.join()
    assert torch.equal(taken[0], TENSORS["b"])


def test_shards_that_are_here_and_shards_that_come_make_one_model(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "made")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    stream = HandStream({"two.safetensors": (tmp_path / "made").read_bytes()})
    stream.bring("two.safetensors")

    weights = open_weights(tmp_path, lambda fraction: None, stream=stream)

    assert torch.equal(weights.take("a", (3, 4), torch.float32), TENSORS["a"])
    assert torch.equal(weights.take("b", (100,), torch.bfloat16), TENSORS["b"])


@pytest.mark.parametrize("wrong", [b"", b"\x01", b"\xff" * 40, (4).to_bytes(8, "little") + b"nope"])
def test_a_header_that_makes_no_sense_is_refused_as_of_a_file(tmp_path: Path, wrong: bytes) -> None:
    stream = HandStream({"model.safetensors": wrong})
    stream.bring("model.safetensors")
    with pytest.raises(SourceInvalid):
        open_weights(tmp_path, lambda fraction: None, stream=stream)


def test_what_ends_the_stream_is_raised_where_a_tensor_is_waited_for(
    tmp_path: Path, content: bytes
) -> None:
    stream = HandStream({"model.safetensors": content})
    stream.bring("model.safetensors", header_end(content))
    weights = open_weights(tmp_path, lambda fraction: None, stream=stream)
    stream.fail(WeightsUnavailable("gone"))
    with pytest.raises(WeightsUnavailable, match="gone"):
        weights.take("a", (3, 4), torch.float32)
