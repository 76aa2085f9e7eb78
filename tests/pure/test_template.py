"""Chat templates: the same text as transformers writes, and failures that say what was wrong.

The expected texts were made with transformers 5; the parity test makes them again.
"""

from __future__ import annotations

import threading
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from ridgeline.errors import TemplateError
from ridgeline.text.template import ChatTemplate, require_template

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The other three are written for this test in the manner of their families.
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role in ['user', 'assistant'] %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """\
{%- macro content_of(content) %}
    {%- if content is string %}
        {{- content }}
    {%- else %}
        {%- for part in content if part.type == 'text' %}
            {{- part.text }}
        {%- endfor %}
    {%- endif %}
{%- endmacro %}
{%- set ns = namespace(last_user=messages|length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- if not ns.found and message.role == 'user' %}
        {%- set ns.found = true %}
        {%- set ns.last_user = messages|length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" ~ (tool | tojson) }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if loop.first or loop.previtem.role != message.role %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- endif %}
    {%- set text = content_of(message.content or '') %}
    {%- if '</think>' in text and loop.index0 < ns.last_user %}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- text }}
    {%- if message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {%- set call = call.function if call.function is defined else call %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- (call.arguments | tojson(indent=2)) + '}\\n</tool_call>' }}
        {%- endfor %}
    {%- endif %}
    {%- if loop.last or loop.nextitem.role != message.role %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- set users = rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in rest %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if message == users[-1] and system is defined %}
            {{- "[INST] " + system + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {% generation %}
        {{- " " + message["content"] | trim + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def tool(content: Any) -> dict[str, Any]:
    return {"role": "tool", "content": content}


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplate(source, "<s>", "</s>").render([user("Hi")] if messages is None else messages, **options)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather <now> & 'later' – für Köln",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "n": [1, 2]}}}
IMAGE = [{"type": "text", "text": "and "}, {"type": "image"}, {"type": "text", "text": "now?"}]

CONVERSATIONS: list[tuple[str, list[dict[str, Any]], dict[str, Any], str]] = [
    (
        SMOLLM2,
        [user("Hi")],
        {},
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        SMOLLM2,
        [system("Be brief."), user("Hi"), assistant("Hello."), user("<b>& é")],
        {"add_generation_prompt": False},
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\n<b>& é<|im_end|>\n",
    ),
    (
        LLAMA3,
        [system("  Be brief. "), user("Hi "), assistant("Hello."), tool({"t": 21, "u": "°C"})],
        {"date_string": "01 Jan 2025"},
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 01 Jan 2025\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        '<|start_header_id|>ipython<|end_header_id|>\n\n{"t": 21, "u": "°C"}<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        LLAMA3,
        [user("Hi")],
        {"date_string": "01 Jan 2025", "add_generation_prompt": False},
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 01 Jan 2025\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    ),
    (
        QWEN,
        [user("Hi"), assistant("<think>\nhm\n</think>\n\nHello."), user(IMAGE)],
        {"enable_thinking": False},
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    (
        QWEN,
        [user("Weather?"), assistant(None, tool_calls=[CALL]), tool("21"), tool("22")],
        {"tools": [WEATHER]},
        '<|im_start|>system\n# Tools\n<tools>\n{"type": "function", "function": {"name": "get_weather", '
        '"description": "Weather <now> & \'later\' – für Köln", "parameters": {"type": "object", "properties": '
        '{"city": {"type": "string"}}, "required": ["city"]}}}\n</tools><|im_end|>\n'
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {\n  "city": "Köln",\n  "n": [\n    1,\n    2\n  ]\n}}\n'
        "</tool_call><|im_end|>\n<|im_start|>tool\n2122<|im_end|>\n<|im_start|>assistant\n",
    ),
    (
        MISTRAL,
        [system("Be brief."), user("Hi"), assistant(" Hello. "), user("And?")],
        {},
        "<s>[INST] Hi[/INST] Hello.</s>[INST] Be brief.\n\nAnd?[/INST]",
    ),
    (MISTRAL, [user("Hi"), assistant("Hello.")], {}, "<s>[INST] Hi[/INST] Hello.</s>"),
]


@pytest.mark.parametrize(("source", "messages", "options", "expected"), CONVERSATIONS)
def test_renders_as_transformers_did(source, messages, options, expected):
    assert render(source, messages, **options) == expected


@pytest.mark.parity
@pytest.mark.parametrize(("source", "messages", "options", "expected"), CONVERSATIONS)
def test_renders_as_transformers_does(source, messages, options, expected):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    options = {"add_generation_prompt": True} | options
    (theirs,), _ = utils.render_jinja_template([messages], chat_template=source, **tokens, **options)
    assert theirs == expected
    if isinstance(messages[-1]["content"], str):
        options["add_generation_prompt"] = False
        (theirs,), _ = utils.render_jinja_template(
            [messages], chat_template=source, continue_final_message=True, **tokens, **options
        )
        assert render(source, messages, continue_final_message=True, **options) == theirs


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "{%- for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
            "{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        ("a\n  {% if true %}\n  b\n  {% endif %}\nc", "a\n  b\nc"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ("{{ 'a' ~ 1 ~ none ~ missing }}", "a1None"),
        ("{{ '%s=%d' % ('a', 2) }}{{ '%s'|format('b') }}{{ '{}-{x[0]}'.format(1, x=[2]) }}", "a=2b1-2"),
        ("{{ 'a,b'.split(',')[-1] }}{{ 'abc'[1:] }}{{ [1, 2][::-1] }}", "bbc[2, 1]"),
        (
            "{% for g in [{'k': 1}, {'k': 2}, {'k': 1}] | groupby('k') %}"
            "{{ g.grouper }}{{ g.list | length }}{% endfor %}",
            "1221",
        ),
        ("{% for x in [[1, [2]], [3]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        (
            "{% macro m(a, b=2) %}{{ a + b }}{{ caller() if caller }}{% endmacro %}"
            "{{ m(1) }}{% call m(2) %}!{% endcall %}",
            "34!",
        ),
        ("{% set x %}{{ 1 }}2{% endset %}{{ x }}{% filter upper %}a{% endfilter %}", "12A"),
        (
            "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.length }}{{ loop.last }}"
            "{% else %}none{% endfor %}",
            "a11True",
        ),
        ("{% for x in [1, 2, 3] if x != 2 %}{{ x }}/{{ loop.length }} {% endfor %}", "1/2 3/2 "),
        ("{{ messages | map(attribute='role') | join(', ') }}{{ [3, 1] | sort | first }}{{ [1, 2] | sum }}", "user13"),
        ("{% generation %}{% set x = 1 %}in {% endgeneration %}{{ x }}", "in 1"),
        ("{{ '<a>' | e }}{{ '<b>' | safe }}{{ 'x' * 3 }}{{ 2 ** 10 }}{{ 7 // 2 }}", "&lt;a&gt;<b>xxx10243"),
        ("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}", "TrueTrueTrue"),
        ("{{ messages[0].content.strip() }}{{ messages[0].get('x', 'd') }}{{ messages[0].x is defined }}", "HidFalse"),
    ],
)
def test_language(source, expected):
    assert render(source) == expected


def test_clock_is_given():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", clock=lambda: datetime(2025, 3, 4))
    assert template.render([]) == "04 Mar 2025"


def test_template_variables_may_be_replaced_but_not_the_conversation():
    assert render("{{ bos_token }}{{ x }}", bos_token="B", x=1) == "B1"


# --- errors ---


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('Only user roles: ' ~ messages|length) }}", r"^Only user roles: 1 \(roles: user\)$"),
        ("\n\n{{ missing.attribute }}", "line 3: 'missing' is undefined"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ 'a' + 1 }}", "TypeError"),
        ("{{ missing | tojson }}", "TypeError"),
        ("{{ strftime_now('%0999999999Y') }}", "strftime_now"),
    ],
)
def test_failures_say_what_and_for_whom(source, says):
    with pytest.raises(TemplateError, match=says) as caught:
        render(source)
    assert "roles: user" in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ 'a",
        "{% endfor %}",
        "{{ x | no_such_filter }}",
        "{{ x is no_such_test }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% block b %}{% endblock %}",
        "{% autoescape true %}{% endautoescape %}",
        "{{ f(*x) }}",
        "{{ f(**x) }}",
        "{{ " + "9" * 5000 + " }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for a in [1] %}" * 40 + "{% endfor %}" * 40,
        " " * 70_000,
    ],
)
def test_templates_that_do_not_compile(source):
    with pytest.raises(TemplateError):
        ChatTemplate(source)


def test_no_template():
    bare = SimpleNamespace(chat_template=None, bos_token="", eos_token="")
    with pytest.raises(TemplateError, match=r"no chat template; use /v1/completions .* `ridgeline run --raw`"):
        require_template(bare)
    full = SimpleNamespace(chat_template="{{ bos_token }}{{ eos_token }}", bos_token="b", eos_token="e")
    assert require_template(full).render([]) == "be"


# --- limits and threads ---


def test_limits_leave_room_for_long_conversations():
    messages = [user("word " * 300), assistant("word " * 300)] * 1000
    for source in (SMOLLM2, LLAMA3, QWEN):
        assert len(render(source, messages)) > 2_900_000


def test_output_is_bounded():
    with pytest.raises(TemplateError, match="wrote more than"):
        render(SMOLLM2, [user("x" * 1_500_000)] * 3)
    with pytest.raises(TemplateError, match="larger than"):
        render(SMOLLM2, [user("x" * 5_000_000)])


def test_threads_share_a_template():
    template = ChatTemplate(QWEN)
    wrong = []

    def work(number: int) -> None:
        for turn in range(30):
            text = f"{number} {turn}"
            if f"user\n{text}<" not in template.render([user(text)]):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
