import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.contracts.model_spec import EngineSettings, ModelSpec, Scaling, ScheduledReplicas
from infra.errors import SpecInvalid
from infra.spec_file import absolute_source, load_spec, validate_spec

GOOD = """\
name: chat
source: hf://HuggingFaceTB/SmolLM2-135M-Instruct@main
"""


def problems(text: str) -> list[str]:
    """Every problem of a text as `line: path: message -> suggestion`."""
    with pytest.raises(SpecInvalid) as caught:
        load_spec(text, filename="model.yaml")
    return [
        f"{error['line']}: {error['path']}: {error['message']}"
        + (f" -> {error['suggestion']}" if error["suggestion"] else "")
        for error in caught.value.facts["errors"]
    ]


def test_a_spec_is_read_with_its_defaults() -> None:
    spec = load_spec(GOOD, filename="model.yaml")

    assert spec == ModelSpec.model_validate(
        {
            "name": "chat",
            "source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct@main",
        }
    )


def test_every_section_is_read() -> None:
    spec = load_spec(
        """
        # the whole file
        name: "2024"
        source: s3://bucket/models/chat
        engine: {dtype: float32, block_size: 32, threads: null}
        resources: {gpus: 0, memory_mib: 1024}
        scaling:
          min: 0
          max: 3
          target_concurrency: 2.5
          grace: 30
          standby: 2
        limits: {max_queue: 5, max_body_bytes: 0x10000}
        timeouts: {cold_start: 1e1, queue: .5, execution: 600}
        """,
        filename="model.yaml",
    )

    assert spec.name == "2024"
    assert spec.engine == EngineSettings(dtype="float32", block_size=32)
    assert spec.scaling == Scaling(max=3, target_concurrency=2.5, grace=30, standby=2)
    assert (spec.timeouts.cold_start, spec.timeouts.queue) == (10, 0.5)
    assert spec.limits.max_body_bytes == 65536


@pytest.mark.parametrize("name", ["no", "on", "yes", "off", "y"])
def test_words_that_yaml_1_1_took_for_booleans_are_names(name: str) -> None:
    assert load_spec(f"name: {name}\nsource: file:///m\n", filename="model.yaml").name == name


def test_a_grace_is_auto_or_seconds_and_is_written_as_it_was_read() -> None:
    for word, read, written in (("auto", None, "auto"), ("30", 30.0, 30.0)):
        spec = load_spec(GOOD + f"scaling: {{grace: {word}}}\n", filename="m.yaml")
        assert spec.scaling.grace == read
        assert spec.model_dump(mode="json")["scaling"]["grace"] == written
        assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec
    assert load_spec(GOOD, filename="m.yaml").scaling.grace is None


def test_a_schedule_is_read_and_what_is_wrong_with_it_is_told_where_it_stands() -> None:
    spec = load_spec(
        GOOD
        + """
scaling:
  max: 3
  schedule:
    - {cron: 30 7 * * 1-5, timezone: Europe/Berlin, duration: 36000, replicas: 2}
    - {cron: "0 0 1 * *", duration: 60}
""",
        filename="m.yaml",
    )
    assert spec.scaling.schedule == (
        ScheduledReplicas(
            cron="30 7 * * 1-5", timezone="Europe/Berlin", duration=36000, replicas=2
        ),
        ScheduledReplicas(cron="0 0 1 * *", duration=60),
    )
    assert ModelSpec.model_validate_json(spec.model_dump_json()) == spec

    text = """\
scaling:
  schedule:
    - {cron: 7 * *, duration: 60}
    - {cron: "0 0 31 2 *", duration: 60}
    - {cron: "0 0 30 2 1,8", duration: 60}
    - cron: "0 8 * * *"
      timezone: ../../etc/passwd
      duration: 60
    - {cron: "* * * * 5#2/3", timezone: Mars/Olympus, duration: 60}
"""
    assert problems(GOOD + text) == [
        "5: scaling.schedule.0.cron: '7 * *' has 3 fields, 5 are expected: "
        "minute hour day month weekday",
        "6: scaling.schedule.1.cron: '0 0 31 2 *' is no cron expression: Bad day-of-month",
        "7: scaling.schedule.2.cron: '0 0 30 2 1,8' is no cron expression: Bad day-of-week",
        "9: scaling.schedule.3.timezone: '../../etc/passwd' is no known time zone, such as UTC "
        "or Europe/Berlin",
        "11: scaling.schedule.4.cron: '* * * * 5#2/3' is no cron expression: Bad day-of-week",
        "11: scaling.schedule.4.timezone: 'Mars/Olympus' is no known time zone, such as UTC "
        "or Europe/Berlin",
    ]


def test_all_problems_are_listed_at_once_in_the_order_of_the_text() -> None:
    text = """\
name: Chat Model
sorce: file:///models/chat
engine:
  dtype: bf16
  blok_size: 16
scaling:
  min: 5
  max: 2
  grace: .nan
  target_concurency: 4
timeouts: 10
"""

    assert problems(text) == [
        "1: name: 'Chat Model' has 'C' (LATIN CAPITAL LETTER C) at position 1; "
        "lower-case letters a-z, digits and hyphens are accepted -> chat-model",
        "1: source: is required",
        "2: sorce: is unknown -> source",
        "4: engine.dtype: must be 'auto', 'bfloat16' or 'float32', not 'bf16' -> bfloat16",
        "5: engine.blok_size: is unknown -> block_size",
        "6: scaling: min (5) is greater than max (2)",
        "9: scaling.grace: must be a finite number, not nan",
        "10: scaling.target_concurency: is unknown -> target_concurrency",
        "11: timeouts: must be a mapping of settings",
    ]


def test_the_message_names_file_count_and_first_problem() -> None:
    with pytest.raises(SpecInvalid) as caught:
        load_spec(GOOD + "scaling: {mni: 1, max: 0}\n", filename="m.yaml")

    assert str(caught.value) == (
        "m.yaml has 2 problems, the first on line 3: scaling.mni: is unknown; did you mean min?"
    )
    assert caught.value.facts["errors"][0] == {
        "line": 3,
        "column": 11,
        "path": "scaling.mni",
        "message": "is unknown",
        "suggestion": "min",
    }


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("scaling: {min: 2, max: 1}", "3: scaling: min (2) is greater than max (1)"),
        ("scaling: {min: -1}", "3: scaling.min: must be greater than or equal to 0, not -1"),
        ("scaling: {max: 1e99}", "3: scaling.max: must be a valid integer, not 1e+99"),
        ("scaling: {max: '2'}", "3: scaling.max: must be a valid integer, not '2'"),
        ("scaling: {max: yes}", "3: scaling.max: must be a valid integer, not 'yes'"),
        ("scaling: {max: true}", "3: scaling.max: must be a valid integer, not true"),
        ("scaling: {grace: .inf}", "3: scaling.grace: must be a finite number, not inf"),
        ("scaling: {grace: 1e400}", "3: scaling.grace: must be a finite number, not inf"),
        ("scaling: {grace: soon}", "3: scaling.grace: must be auto or a number of seconds"),
        ("scaling: {schedule: daily}", "3: scaling.schedule: must be a list, not 'daily'"),
        (
            "scaling: {schedule: [{crn: '* * * * *', cron: '* * * * *', duration: 1}]}",
            "3: scaling.schedule.0.crn: is unknown -> cron",
        ),
        (
            "scaling: {schedule: [{cron: '* * * * *', duration: 0}]}",
            "3: scaling.schedule.0.duration: must be greater than 0, not 0",
        ),
        (
            "scaling: {schedule: [{cron: '* * * * *', duration: 9, replicas: 2}]}",
            "3: scaling: schedule asks for 2 replicas, max is 1",
        ),
        ("scaling: [1, 2]", "3: scaling: must be a mapping of settings"),
        ("scaling:", "3: scaling: must be a mapping of settings"),
        ("engine: {block_size: 17}", "3: engine.block_size: must be 16, 32 or 64, not 17"),
        ("limits: {max_queue: " + "9" * 60_000 + "}", "3: limits.max_queue: must be a valid"),
        ("resources: {gpus: 1.5}", "3: resources.gpus: must be a valid integer"),
        ("resources: {gpu: h100}", "3: resources: gpu is h100, and gpus is 0: a replica would"),
        ("engine: !!python/object/apply:os.system [id]", "3: : tags (tag:yaml.org,2002:python/"),
        ("engine: !!python/name:os.system", "3: : tags (tag:yaml.org,2002:python/"),
        ("engine: !custom {}", "3: : tags (!custom) are not accepted"),
        ("engine: !!str x", "3: : tags (tag:yaml.org,2002:str) are not accepted"),
        ("name: other", "3: : 'name' is given twice, first on line 1"),
        ("? [a, b]\n: c", "3: : a key must be a word"),
        ("? {a: b}\n: c", "3: : a key must be a word"),
        ("1: x", "3: 1: is unknown"),
        ("<<: {name: y}", "3: <<: is unknown"),
        ("s\u0441aling: {}", "3: s\\u0441aling: is unknown -> scaling"),
        ("--- \nname: b", "3: : a second document begins here"),
        ("engine: {", "4: : is not YAML: "),
        ("\tengine: {}", "3: : is not YAML: found "),
        ("engine: {}}", "3: : is not YAML: "),
        ("x: \0", "3: : is not YAML: "),
        ("x: \x07", "3: : is not YAML: "),
        ("x: '\ud800'", "3: : half a surrogate pair"),
    ],
)
def test_a_bad_line_is_named(line: str, expected: str) -> None:
    found = problems(GOOD + line + "\n")

    assert any(problem.startswith(expected) for problem in found), found


@pytest.mark.parametrize(
    ("name", "message", "suggestion"),
    [
        ("\u0441hat", r"'\u0441hat' has '\u0441' (CYRILLIC SMALL LETTER ES) at position 1;", None),
        ("ch\u0430t", r"'ch\u0430t' has '\u0430' (CYRILLIC SMALL LETTER A) at position 3;", None),
        ("\uff43\uff48\uff41\uff54", r"(FULLWIDTH LATIN SMALL LETTER C) at position 1;", "chat"),
        ("café", r"'caf\xe9' has '\xe9' (LATIN SMALL LETTER E WITH ACUTE)", "cafe"),
        ("chat\u200b", r"'chat\u200b' has '\u200b' (ZERO WIDTH SPACE) at position 5;", None),
        ("chat\u202etahc", r"(RIGHT-TO-LEFT OVERRIDE) at position 5;", None),
        ("-chat", "'-chat' must begin and end with a letter or digit", "chat"),
        ("a" * 64, "has 64 characters, at most 63 are accepted", None),
        ("../../etc", "'../../etc' has '.' (FULL STOP)", "etc"),
    ],
)
def test_a_name_that_only_looks_right_is_taken_apart(
    name: str, message: str, suggestion: str | None
) -> None:
    with pytest.raises(SpecInvalid) as caught:
        load_spec(f'name: "{name}"\nsource: file:///m\n', filename="model.yaml")

    [error] = caught.value.facts["errors"]
    assert message in error["message"]
    assert error["message"].isascii()
    assert error["suggestion"] == suggestion


@pytest.mark.parametrize(
    ("source", "suggestion"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "hf://HuggingFaceTB/SmolLM2-135M"),
        ("org/repo@v1", "hf://org/repo@v1"),
        ("https://huggingface.co/org/repo", None),
        ("file://relative", None),
        ("s3://B/x", None),
        ("hf://org", None),
        ("hf://../../etc/passwd", None),
        ("", None),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, suggestion: str | None) -> None:
    with pytest.raises(SpecInvalid) as caught:
        load_spec(f'name: chat\nsource: "{source}"\n', filename="model.yaml")

    [error] = caught.value.facts["errors"]
    assert error["path"] == "source"
    assert error["suggestion"] == suggestion


def anchors_bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join(['*a' + str(n - 1)] * 9)}]" for n in range(1, 30)]
    return "\n".join(lines)


BOMBS = {
    "anchors": (anchors_bomb(), "anchors (&a0) are not accepted"),
    "an alias to itself": ("name: &a [*a]", "aliases (*a) are not accepted"),
    "a merge bomb": ("a: &a {x: 1}\nb: {<<: [*a, *a]}", "anchors (&a) are not accepted"),
    "a 1 MB name": (f"name: {'a' * (1 << 20)}\n", "at most 65536 are accepted"),
    "a 60 KB name": (f"name: {'a' * 60_000}\n", "has 60000 characters"),
    "a 100 MB file": ("# " + "x" * 100_000_000, "at most 65536 are accepted"),
    "deep flow": ("name: " + "[" * 60_000, "nesting deeper than 16"),
    "deep braces": ("name: " + "{a: " * 15_000, "nesting deeper than 16"),
    "deep blocks": ("\n".join(" " * n + "a:" for n in range(300)), "nesting deeper than 16"),
    "deep dashes": ("- " * 30_000, "nesting deeper than 16"),
    "many values": ("name: [" + "1," * 30_000 + "]", "more than 5000 values"),
    "many keys": ("\n".join(f"k{n}: 1" for n in range(2400)), "is unknown"),
    "many duplicates": ("a: 1\n" * 2400, "is given twice"),
    "many question marks": ("? " * 30_000, "a key must be a word"),
    "an endless string": ('name: "' + "a" * 60_000, "is not YAML"),
    "many documents": ("---\n" * 15_000, "a second document"),
    "nothing": ("", "is empty"),
    "only a comment": ("# nothing\n", "is empty"),
    "a word": ("chat", "must be a mapping of settings"),
    "a list": ("- name: chat", "must be a mapping of settings"),
    "a number": ("42", "must be a mapping of settings"),
    "binary": ("\x7fELF\x02\x01\x01\0\0\0", "is not YAML"),
    "a byte order mark alone": ("\ufeff", "is empty"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_defused_in_milliseconds(name: str) -> None:
    text, words = BOMBS[name]
    started = time.process_time()

    with pytest.raises(SpecInvalid) as caught:
        load_spec(text, filename="model.yaml")

    assert time.process_time() - started < 5  # 1 to 60 ms, as a rule
    errors = caught.value.facts["errors"]
    assert any(words in error["message"] for error in errors)
    assert len(errors) <= 50
    assert len(caught.value.problem().model_dump_json()) < 20_000


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.text(alphabet="namesourc:[]{}&*!|>-?#'\"\\ \n\t%@`,0123.~<é\0", max_size=60))
def test_any_text_is_a_spec_or_a_typed_error(text: str) -> None:
    try:
        load_spec(text, filename="model.yaml")
    except SpecInvalid as error:
        assert error.facts["errors"]


def test_json_is_yaml() -> None:
    assert load_spec('{"name": "chat", "source": "file:///m"}', filename="body").name == "chat"


@pytest.mark.parametrize(
    ("data", "path", "suggestion"),
    [
        ({"name": "chat", "source": "file:///m", "scalling": {}}, "scalling", "scaling"),
        ({"name": "chat", "source": "file:///m", "engine": {"dtype": 5}}, "engine.dtype", None),
        ([], "", None),
        (None, "", None),
    ],
)
def test_parsed_data_gets_the_same_problems_without_lines(
    data: Any, path: str, suggestion: str | None
) -> None:
    with pytest.raises(SpecInvalid) as caught:
        validate_spec(data, filename="the body")

    [error] = caught.value.facts["errors"]
    assert (error["line"], error["path"], error["suggestion"]) == (None, path, suggestion)


def test_forty_thousand_unknown_keys_are_refused_at_once() -> None:
    data = {f"key{n}": n for n in range(40_000)}
    started = time.process_time()

    with pytest.raises(SpecInvalid) as caught:
        validate_spec(data, filename="the body")

    assert time.process_time() - started < 5  # 0.1 s, as a rule
    assert len(caught.value.facts["errors"]) == 50


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("./models/x", "file:///project/models/x"),
        ("../x", "file:///x"),
        ("file:./x", "file:///project/x"),
        ("file:x/y", "file:///project/x/y"),
        (".", "file:///project"),
        ("/abs/x", "file:///abs/x"),
        ("./a b%c", "file:///project/a%20b%25c"),
        ("file:///abs/x", "file:///abs/x"),
        ("hf://org/repo", "hf://org/repo"),
        ("org/repo", "org/repo"),
    ],
)
def test_file_sources_are_relative_to_the_specs_folder(source: str, expected: str) -> None:
    assert absolute_source(source, Path("/project")) == expected


def test_a_relative_source_is_read_beside_its_file_and_nowhere_else() -> None:
    text = "name: chat\nsource: ./m\n"

    assert load_spec(text, filename="f", folder=Path("/a")).source == "file:///a/m"
    assert problems(text)[0].startswith("2: source: './m' is not file:///dir")


def test_a_draft_models_source_is_read_as_the_models_own() -> None:
    text = "name: chat\nsource: ./large\nengine: {speculation: draft, draft_source: ./small}"
    spec = load_spec(text, filename="model.yaml", folder=Path("/models"))
    assert spec.engine.draft_source == "file:///models/small"


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (
            "{speculation: draft}",
            "3: engine: speculation: draft and a draft_source come together",
        ),
        (
            "{draft_source: 'file:///small'}",
            "3: engine: speculation: draft and a draft_source come together",
        ),
        (
            "{speculation: draft, draft_source: 'http://small'}",
            "3: engine.draft_source: is not file:///dir, hf://org/repo@revision, "
            "s3://bucket/prefix or oci://host/repository:tag",
        ),
    ],
)
def test_a_draft_model_comes_with_its_source(engine: str, expected: str) -> None:
    assert problems(f"{GOOD}engine: {engine}\n")[-1] == expected
