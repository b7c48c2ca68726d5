"""Tokenizers of both kinds, streamed; files that are none."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Library

from infra.errors import Invalid, SourceInvalid, UnsupportedModel
from worker.tokenizer.spelling import Decoding
from worker.tokenizer.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}:{{ message['content'] }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
)
TEXTS = [
    "",
    " ",
    "Hello, world",
    "  two  spaces  ",
    "\n\ttabs\r\n",
    "déjà vu, naïve, Straße",
    "你好世界。",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🙂",
    "def f(x):\n    return x ** 2  # code",
    "\u0000\u0001\ufffd\U0010ffff",
]


def byte_level() -> Library:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "he", "ll", "hell"])}
    library = Library(models.BPE(vocab=vocabulary, merges=[("h", "e"), ("l", "l"), ("he", "ll")]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def sentence_piece() -> Library:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    vocabulary = {token: index for index, token in enumerate(pieces)}
    vocabulary["▁h"] = len(vocabulary)
    library = Library(
        models.BPE(
            vocab=vocabulary,
            merges=[("▁", "h")],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return library


def write(folder: Path, library: Library, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    library.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    library.add_tokens(["plainly added"])
    library.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", "bos_token": {"content": "<s>"}} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module", params=[byte_level, sentence_piece])
def library(request: pytest.FixtureRequest) -> Library:
    made: Library = request.param()
    return made


@pytest.fixture(scope="module")
def tokenizer(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = write(tmp_path_factory.mktemp("tokenizer"), library, chat_template=TEMPLATE)
    return Tokenizer.load(folder)


def stream(tokenizer: Tokenizer, token_ids: list[int]) -> str:
    detokenizer = tokenizer.stream()
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.flush()


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_text_is_the_text(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert stream(tokenizer, token_ids) == text


@given(text=st.text(max_size=40))
def test_streamed_text_is_what_the_library_decodes(
    library: Library, tokenizer: Tokenizer, text: str
) -> None:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert stream(tokenizer, token_ids) == library.decode(token_ids)


@given(token_ids=st.lists(st.integers(0, 255), max_size=12))
def test_bytes_in_any_order_stream_as_they_decode_at_once(
    tokenizer: Tokenizer, token_ids: list[int]
) -> None:
    spelling = b"".join(map(tokenizer.token_bytes, token_ids))
    text = stream(tokenizer, token_ids)
    whole = spelling.decode("utf-8", "replace")
    assert text in {whole, whole.removeprefix(" ")}


def test_special_tokens_are_read_but_not_written(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("<s>hello</s>plainly added", add_special_tokens=False)
    assert stream(tokenizer, token_ids).strip() == "helloplainly added"
    assert tokenizer.token_bytes(token_ids[0]) == b"<s>"


def test_every_id_has_a_spelling_and_unknown_ones_an_empty_one(tokenizer: Tokenizer) -> None:
    assert all(tokenizer.token_bytes(each) for each in range(tokenizer.vocabulary))
    for unknown in (tokenizer.vocabulary, -1, 1 << 40):
        assert tokenizer.token_bytes(unknown) == b""


def test_the_end_token_is_the_generation_settings_or_the_tokenizers(tmp_path: Path) -> None:
    write(tmp_path, byte_level())
    end = Tokenizer.load(tmp_path).encode("</s>", add_special_tokens=False)
    assert Tokenizer.load(tmp_path).eos_token_ids == frozenset(end)
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert Tokenizer.load(tmp_path).eos_token_ids == {5}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 7]}')
    assert Tokenizer.load(tmp_path).eos_token_ids == {6, 7}


def test_a_conversation_is_written_as_the_template_says(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "hi"}]
    text = "<s>user:hi</s><s>assistant:"
    assert tokenizer.render_chat(messages, now=0) == text
    assert tokenizer.encode_chat(messages, now=0) == tokenizer.encode(
        text, add_special_tokens=False
    )


@pytest.mark.parametrize(
    ("config", "file", "rendered"),
    [
        ({"chat_template": "from config"}, None, "from config"),
        ({"chat_template": "from config"}, "from file", "from file"),
        (
            {
                "chat_template": [
                    {"name": "tool_use", "template": "tools"},
                    {"name": "default", "template": "default"},
                ]
            },
            None,
            "default",
        ),
        ({"chat_template": "{{ bos_token }}{{ eos_token }}"}, None, "<s></s>"),
    ],
)
def test_where_templates_are_kept(
    tmp_path: Path, config: dict[str, Any], file: str | None, rendered: str
) -> None:
    write(tmp_path, byte_level(), **config)
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file)
    assert Tokenizer.load(tmp_path).render_chat([], now=0) == rendered


def test_without_a_template_messages_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, byte_level()))
    with pytest.raises(Invalid, match="no chat template"):
        tokenizer.render_chat([{"role": "user", "content": "hi"}], now=0)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": {}}', "\0" * 100])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(SourceInvalid):
        Tokenizer.load(tmp_path)


def test_a_missing_tokenizer_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SourceInvalid, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)


def test_a_template_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    write(tmp_path, byte_level())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(SourceInvalid):
        Tokenizer.load(tmp_path)


def test_a_kind_that_cannot_be_streamed_is_unsupported(tmp_path: Path) -> None:
    library = byte_level()
    library.decoder = decoders.WordPiece()
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        Tokenizer.load(write(tmp_path, library))


def test_spellings_of_both_kinds() -> None:
    assert Decoding("byte_level").bytes_of("Ġhi") == b" hi"
    assert Decoding("byte_level").bytes_of("Ã©") == "é".encode()
    assert Decoding("byte_level").bytes_of("世") == "世".encode()
    assert Decoding("byte_fallback").bytes_of("▁hi") == b" hi"
    assert Decoding("byte_fallback").bytes_of("<0xE4>") == b"\xe4"
    assert Decoding("byte_fallback").bytes_of("<0xZZ>") == b"<0xZZ>"


def test_tokenizers_spell_alike_where_every_id_has_the_same_spelling(tmp_path: Path) -> None:
    one = Tokenizer.load(write(tmp_path / "one", byte_level()))
    same = Tokenizer.load(write(tmp_path / "same", byte_level()))
    other = Tokenizer.load(write(tmp_path / "other", sentence_piece()))
    more = byte_level()
    more.add_tokens(["hello"])

    assert one.spells_like(same)
    assert not one.spells_like(other) and not other.spells_like(one)
    assert not one.spells_like(Tokenizer.load(write(tmp_path / "more", more)))
