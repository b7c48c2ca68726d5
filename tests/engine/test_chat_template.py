"""Templates that nobody vouches for."""

import pytest

from infra.errors import Invalid, SourceInvalid
from worker.tokenizer.chat_template import MOST_TEMPLATE_CHARACTERS, ChatTemplate

MESSAGES = [
    {"role": "system", "content": " be brief "},
    {"role": "user", "content": 'say "hé"'},
]


EVENING = 1_764_269_999.0  # 27 November 2025, 18:59:59 UTC


def render(source: str) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES, now=EVENING)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{{ messages[1].role }}", "<s>user"),
        ("{{ messages[0]['content'] | trim }}", "be brief"),
        ("{{ messages[0].content.strip() + '!' }}", "be brief!"),
        ("{{ messages[1].content | tojson }}", '"say \\"hé\\""'),
        ("{% for m in messages %}{{ loop.index0 }}{{ loop.last }} {% endfor %}", "0False 1True "),
        ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "system"),
        ("{% for m in messages if m.role == 'user' %}{{ loop.length }}{% endfor %}", "1"),
        ("{% for m in [] %}{% else %}none{% endfor %}", "none"),
        ("{% set ns = namespace(n=1) %}{% for i in range(3) %}{% set ns.n = ns.n * 2 %}"
         "{% endfor %}{{ ns.n }}", "8"),
        ("{% macro say(m) %}[{{ m.role ~ 1 }}]{% endmacro %}{{ say(messages[0]) }}", "[system1]"),
        ("{{ (messages | selectattr('role', 'equalto', 'user') | list | length) % 2 }}", "1"),
        ("{{ tools is defined }}{{ messages[1:] | length }}", "False1"),
        ("{%- if messages[0].role == 'system' %}\n  yes\n{%- endif %}", "  yes"),
        ("{{ (messages + messages) | length }}", "4"),
        # as Llama 3.2's begins, and others
        ("{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
         "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{{ date_string }}",
         "27 Nov 2025"),
        ("{{ strftime_now('%A, %-d. %B %Y, %H:%M:%S, 100 %%') }}",
         "Thursday, 27. November 2025, 18:59:59, 100 %"),
    ],
)  # fmt: skip
def test_what_templates_commonly_do(source: str, text: str) -> None:
    assert render(source) == text


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("{{ ''.__class__.__mro__[1].__subclasses__() }}", id="classes"),
        pytest.param("{{ messages.append(1) }}", id="mutation"),
        pytest.param("{{ render.__globals__.os }}", id="globals"),
        pytest.param("{% include '/etc/passwd' %}", id="include"),
        pytest.param("{{ 'a' * 10000000000 }}", id="repetition"),
        pytest.param("{{ [0] * 10000000000 }}", id="list repetition"),
        pytest.param("{{ 9 ** 9 ** 9 ** 9 }}", id="power"),
        pytest.param("{{ '%1000000000d' % 1 }}", id="format operator"),
        pytest.param("{{ 'a'.ljust(10000000000) }}", id="padding"),
        pytest.param("{{ '{:1000000000}'.format(1) }}", id="format method"),
        pytest.param("{{ 'a' | center(1000000000) }}", id="center"),
        pytest.param("{{ strftime_now('%1000000000d') }}", id="width of a date"),
        pytest.param("{{ strftime_now('%c' * 2) }}", id="repeated dates"),
        pytest.param("{{ strftime_now('" + "%c" * 101 + "') }}", id="many dates"),
        pytest.param("{{ strftime_now('%') }}", id="half a date"),
        pytest.param("{{ strftime_now(9) }}", id="no format"),
        pytest.param("{{ range(10 ** 10) }}", id="range"),
        pytest.param("{{ range(99999) | list | tojson(indent=100000) | wordwrap }}", id="wrap"),
        pytest.param("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
                     id="loops"),
        pytest.param("{% set n = namespace(x='a') %}{% for i in range(99) %}"
                     "{% set n.x = n.x ~ n.x %}{% endfor %}", id="doubling by ~"),
        pytest.param("{% set n = namespace(x='a') %}{% for i in range(99) %}"
                     "{% set n.x = n.x + n.x %}{% endfor %}", id="doubling by +"),
        pytest.param("{% set n = namespace(x=[1]) %}{% for i in range(99) %}"
                     "{% set n.x = n.x + n.x %}{% endfor %}", id="doubling of lists"),
        pytest.param("{% set n = namespace(x='a') %}{% for i in range(99) %}"
                     "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
                     id="doubling by blocks"),
        pytest.param("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", id="recursion"),
        pytest.param("{{ messages[0].content.nothing.at_all }}", id="undefined"),
        pytest.param("{{ 1 / 0 }}", id="division"),
        pytest.param("{{ 1 + 'a' }}", id="types"),
    ],
)  # fmt: skip
def test_what_goes_beyond_its_bounds_is_refused(source: str) -> None:
    with pytest.raises(SourceInvalid):
        render(source)


@pytest.mark.parametrize(
    "source",
    ["{% for %}", "{{ 'a' | nothing }}", "{% for m in messages recursive %}{% endfor %}", "{{"],
)
def test_what_does_not_compile_is_refused_when_it_is_read(source: str) -> None:
    with pytest.raises(SourceInvalid, match="does not compile"):
        ChatTemplate(source, {})


def test_a_huge_template_is_not_even_parsed() -> None:
    with pytest.raises(SourceInvalid, match="characters"):
        ChatTemplate(" " * (MOST_TEMPLATE_CHARACTERS + 1), {})


def test_a_template_may_refuse_the_messages() -> None:
    with pytest.raises(Invalid, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
