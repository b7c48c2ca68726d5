from pathlib import Path
from typing import Any

import pytest

from infra.errors import SourceInvalid
from infra.virtual_time import run_virtual
from tests.server.support import Reply, chat_body, engine_saying, make_server, post
from worker.server.defaults import SamplingDefaults, read_sampling_defaults, recommended


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, SamplingDefaults(1.0, 1.0)),
        ({"temperature": 0.6, "top_p": 0.9}, SamplingDefaults(0.6, 0.9)),
        ({"temperature": 0}, SamplingDefaults(0, 1.0)),
        ({"temperature": -1, "top_p": 0}, SamplingDefaults(1.0, 1.0)),
        ({"temperature": "hot", "top_p": True}, SamplingDefaults(1.0, 1.0)),
        ({"temperature": float("nan"), "top_p": float("inf")}, SamplingDefaults(1.0, 1.0)),
    ],
)
def test_a_generation_config_recommends(config: dict[str, Any], expected: SamplingDefaults) -> None:
    assert recommended(config) == expected


def test_a_model_folder_may_have_none(tmp_path: Path) -> None:
    assert read_sampling_defaults(tmp_path) == SamplingDefaults()

    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3}')
    assert read_sampling_defaults(tmp_path) == SamplingDefaults(temperature=0.3)

    (tmp_path / "generation_config.json").write_text("[]")
    with pytest.raises(SourceInvalid):
        read_sampling_defaults(tmp_path)


def test_defaults_hold_where_a_request_does_not_say() -> None:
    engine = engine_saying("a")

    async def asked(**members: Any) -> Reply:
        server = make_server(engine, defaults=SamplingDefaults(temperature=0.6, top_p=0.9))
        return await post(server, "/v1/chat/completions", chat_body(**members))

    run_virtual(asked())
    run_virtual(asked(temperature=0, top_p=1))

    chosen = [(one.sampling.temperature, one.sampling.top_p) for one in engine.submitted]
    assert chosen == [(0.6, 0.9), (0, 1)]
