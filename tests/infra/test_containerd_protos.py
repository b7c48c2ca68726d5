from pathlib import Path

import pytest

from infra.containerd.generate import PROTOS, ROOT, generate
from infra.containerd.method import Method
from infra.containerd.methods import (
    Containers,
    Content,
    CriImages,
    Diff,
    Images,
    Leases,
    Namespaces,
    Snapshots,
    Tasks,
)


def test_the_generated_code_is_what_the_protos_say(tmp_path: Path) -> None:
    generate(tmp_path)

    made = {path.name: path.read_text() for path in (tmp_path / PROTOS).iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / PROTOS).glob("*_pb2.py*")}
    assert made == kept


@pytest.mark.parametrize(
    "service",
    [Snapshots, Content, Images, Leases, Diff, Containers, Tasks, Namespaces, CriImages],
)
def test_each_call_is_one_of_its_service_with_its_messages(service: type) -> None:
    methods = [it for it in vars(service).values() if isinstance(it, Method)]

    for method in methods:
        file = method.request.DESCRIPTOR.file
        declared = file.services_by_name[method.service.rpartition(".")[2]]
        described = declared.methods_by_name[method.name]
        assert declared.full_name == method.service
        assert described.input_type is method.request.DESCRIPTOR
        assert described.output_type is method.response.DESCRIPTOR
    assert methods
