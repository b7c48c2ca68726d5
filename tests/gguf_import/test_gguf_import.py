import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from infra.errors import Conflict, PlatformError, SourceInvalid, SourceUnavailable, UnsupportedModel
from tests.gguf_import.reference import Gguf, reference_logits, rounded_to_bfloat16
from tests.gguf_import.tiny import TEXT, trained, write_gguf
from worker.weights.gguf_import import MARKER_NAME, import_gguf
from worker.weights.safetensors_writer import to_bfloat16

Q = GGMLQuantizationType
IDS = [1, 70, 80, 5, 200, 2, 9]


def silent(fraction: float, step: str) -> None:
    """Hears progress and says nothing."""


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def hugging_face_logits(folder: Path, ids: list[int]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor([ids])).logits[0].numpy()
    return logits


@pytest.mark.parametrize(
    "encoding", [Q.F32, Q.F16, Q.BF16, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q8_0], ids=lambda q: q.name
)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_import_computes_what_the_gguf_does(
    tmp_path: Path, encoding: GGMLQuantizationType, tied: bool
) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", encoding=encoding, tied=tied)

    import_gguf(source, tmp_path / "model", silent)

    expected = reference_logits(Gguf(source), IDS, rounded=True)
    assert hugging_face_logits(tmp_path / "model", IDS) == pytest.approx(expected, abs=1e-4)


def test_config_says_what_the_gguf_says(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", keys={"tokenizer.ggml.eot_token_id": 0})

    import_gguf(source, tmp_path / "model", silent)

    config = read_json(tmp_path / "model/config.json")
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(trained(TEXT, 120)[0]),
    }
    assert read_json(tmp_path / "model/generation_config.json") == {
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
    }
    assert read_json(tmp_path / "model/tokenizer_config.json") == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 128,
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "chat_template": "{{ messages[0]['content'] }}",
    }


def test_a_large_model_is_written_in_shards_with_an_index(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    import_gguf(source, tmp_path / "whole", silent)

    import_gguf(source, tmp_path / "sharded", silent, max_shard_bytes=40_000)

    index = read_json(tmp_path / "sharded/model.safetensors.index.json")
    shards = sorted(path.name for path in (tmp_path / "sharded").glob("*.safetensors"))
    assert shards == [f"model-0000{n}-of-00005.safetensors" for n in (1, 2, 3, 4, 5)]
    assert sorted(set(index["weight_map"].values())) == shards
    with safe_open(tmp_path / "whole/model.safetensors", "pt") as whole:
        assert set(index["weight_map"]) == set(whole.keys())
        total = 0
        for name, shard in index["weight_map"].items():
            with safe_open(tmp_path / "sharded" / shard, "pt") as part:
                assert torch.equal(part.get_tensor(name), whole.get_tensor(name))
                total += part.get_tensor(name).nbytes
    assert index["metadata"] == {"total_size": total}
    assert hugging_face_logits(tmp_path / "sharded", IDS) == pytest.approx(
        hugging_face_logits(tmp_path / "whole", IDS)
    )


def test_progress_names_its_steps_and_never_goes_back(tmp_path: Path) -> None:
    heard: list[tuple[float, str]] = []

    import_gguf(
        write_gguf(tmp_path / "tiny.gguf"),
        tmp_path / "model",
        lambda fraction, step: heard.append((fraction, step)),
    )

    fractions = [fraction for fraction, _ in heard]
    assert fractions == sorted(fractions)
    assert list(dict.fromkeys(step for _, step in heard)) == [
        "header",
        "tokenizer",
        "weights",
        "done",
    ]
    assert heard[-1] == (1.0, "done")


def test_an_earlier_import_is_replaced(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    import_gguf(source, tmp_path / "model", silent)
    (tmp_path / "model/left-over").touch()

    import_gguf(source, tmp_path / "model", silent)

    assert not (tmp_path / "model/left-over").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tiny.gguf"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    import_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model", silent)

    assert (tmp_path / "model/config.json").is_file()


@pytest.mark.parametrize("made", ["folder", "file", "link"])
def test_what_is_not_ours_is_left_alone(tmp_path: Path, made: str) -> None:
    target = tmp_path / "model"
    match made:
        case "folder":
            target.mkdir()
            (target / "thesis.tex").write_text("years of work")
        case "file":
            target.write_text("years of work")
        case _:
            target.symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(Conflict, match="exists and"):
        import_gguf(write_gguf(tmp_path / "tiny.gguf"), target, silent)

    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "tiny.gguf"])


def test_a_failure_half_way_leaves_no_trace_and_keeps_the_earlier_import(tmp_path: Path) -> None:
    import_gguf(write_gguf(tmp_path / "good.gguf"), tmp_path / "model", silent)
    before = (tmp_path / "model/model.safetensors").read_bytes()
    bad = np.ones(64, np.float32)
    bad[3] = np.nan
    source = write_gguf(tmp_path / "bad.gguf", changed={"output_norm.weight": bad})

    with pytest.raises(SourceInvalid, match=r"output_norm\.weight is not finite"):
        import_gguf(source, tmp_path / "model", silent)

    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"good.gguf", "bad.gguf", "model"}


def test_an_interrupt_leaves_no_trace(tmp_path: Path) -> None:
    def interrupt(fraction: float, step: str) -> None:
        if step == "weights":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "model", interrupt)

    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_a_target_that_cannot_be_written_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(SourceUnavailable, match="cannot write"):
        import_gguf(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "file/model", silent)


def test_the_folder_says_where_it_came_from(tmp_path: Path) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")

    import_gguf(source, tmp_path / "model", silent)

    assert read_json(tmp_path / "model" / MARKER_NAME) == {
        "format": "gguf",
        "file": "tiny.gguf",
        "bytes": source.stat().st_size,
        "general": {"architecture": "llama"},
    }


def llama3_table(factor: float, base: float = 500_000.0) -> np.ndarray:
    """As convert_hf_to_gguf.py of llama.cpp writes it, one frequency at a time."""
    table = []
    for frequency in 1.0 / (base ** (np.arange(0, 16, 2) / 16)):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4.0:
            table.append(1.0)
        elif wavelength > 8192 / 1.0:
            table.append(factor)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            table.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(table, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_rope_scaling_is_recovered_from_its_table(tmp_path: Path, factor: float) -> None:
    source = write_gguf(
        tmp_path / "tiny.gguf",
        keys={"llama.rope.freq_base": 500_000.0},
        changed={"rope_freqs.weight": llama3_table(factor)},
    )

    import_gguf(source, tmp_path / "model", silent)

    assert read_json(tmp_path / "model/config.json")["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_linear_rope_scaling_is_kept(tmp_path: Path) -> None:
    keys = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}

    import_gguf(write_gguf(tmp_path / "tiny.gguf", keys=keys), tmp_path / "model", silent)

    scaling = read_json(tmp_path / "model/config.json")["rope_scaling"]
    assert scaling == {"rope_type": "linear", "factor": 4.0}


ONES = np.ones(64, np.float32)


@pytest.mark.parametrize(
    ("keys", "changed", "error", "words"),
    [
        ({"general.architecture": "mamba"}, {}, UnsupportedModel, "architecture 'mamba'"),
        ({"llama.logit_scale": 2.0}, {}, UnsupportedModel, r"llama\.logit_scale"),
        ({"llama.expert_count": 8}, {}, UnsupportedModel, "mixtures of experts"),
        ({"llama.rope.dimension_count": 8}, {}, UnsupportedModel, "differs from the head size"),
        ({"llama.rope.scaling.type": "yarn"}, {}, UnsupportedModel, "'yarn'"),
        ({"llama.block_count": 0}, {}, SourceInvalid, "integer from 1"),
        ({"llama.block_count": 3}, {}, SourceInvalid, r"blk\.2\.attn_norm\.weight is missing"),
        ({"llama.block_count": True}, {}, SourceInvalid, "not an integer"),
        ({"llama.block_count": None}, {}, SourceInvalid, "block_count is missing"),
        ({"llama.attention.head_count": 3}, {}, SourceInvalid, "do not divide"),
        ({"llama.attention.head_count_kv": [2, 2]}, {}, SourceInvalid, "not an integer"),
        ({"llama.rope.freq_base": float("inf")}, {}, SourceInvalid, "greater than 0"),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, {}, SourceInvalid, "greater than 0"),
        ({}, {"blk.0.attn_q.bias": ONES}, UnsupportedModel, r"blk\.0\.attn_q\.bias"),
        ({}, {"output_norm.weight": None}, SourceInvalid, r"output_norm\.weight is missing"),
        ({}, {"output_norm.weight": ONES[:32]}, SourceInvalid, r"shape \[32\], expected \[64\]"),
        ({}, {"token_embd.weight": None}, SourceInvalid, "token_embd"),
        ({}, {"token_embd.weight": np.ones((9, 64), np.float32)}, SourceInvalid, "9 embeddings"),
        ({}, {"rope_freqs.weight": ONES[:8] * 3}, UnsupportedModel, "no known rule"),
        ({}, {"rope_freqs.weight": ONES[:4]}, SourceInvalid, "rope_freqs"),
    ],
)
def test_what_is_no_plain_llama_is_refused(
    tmp_path: Path,
    keys: dict[str, Any],
    changed: dict[str, np.ndarray | None],
    error: type[PlatformError],
    words: str,
) -> None:
    source = write_gguf(tmp_path / "tiny.gguf", keys=keys, changed=changed)

    with pytest.raises(error, match=words):
        import_gguf(source, tmp_path / "model", silent)

    assert not (tmp_path / "model").exists()


def test_bfloat16_rounding_is_to_nearest_even() -> None:
    random = np.random.default_rng(3)
    values = np.concatenate(
        [
            random.normal(0, 1, 4096),
            random.normal(0, 1e-30, 64),
            [0.0, -0.0, 1.0, 1.00390625, 1.01171875, 3.3e38, -1.5],
        ]
    ).astype(np.float32)

    bits = to_bfloat16(values)

    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert np.array_equal(bits, expected.view(torch.uint16).numpy())
    assert np.array_equal(rounded_to_bfloat16(values), expected.float().numpy())


def test_rows_of_tensors_reach_their_place_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_gguf(tmp_path / "tiny.gguf")
    import_gguf(source, tmp_path / "whole", silent)

    monkeypatch.setattr("worker.weights.gguf_tensors.CHUNK_ELEMENTS", 192)
    import_gguf(source, tmp_path / "chunked", silent)

    whole, chunked = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "chunked")
    )
    assert whole == chunked
