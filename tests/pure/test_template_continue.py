"""Chat templates whose last message is left open, to be continued."""

from __future__ import annotations

import pytest
from test_template import LLAMA3, QWEN, SMOLLM2, assistant, render, tool, user

from ridgeline.errors import InvalidRequest, TemplateError


def test_continued_message_is_left_open():
    messages = [user("Hi"), assistant("The answer is ")]
    assert render(SMOLLM2, messages, continue_final_message=True).endswith("assistant\nThe answer is ")
    assert render(LLAMA3, messages, continue_final_message=True).endswith("The answer is")  # it trims messages
    parts = [user("Hi"), assistant([{"type": "text", "text": "So"}])]
    assert render(QWEN, parts, continue_final_message=True).endswith("<|im_start|>assistant\nSo")
    assert messages[-1]["content"] == "The answer is "


@pytest.mark.parametrize(
    ("messages", "options", "error"),
    [
        ([assistant("x")], {"continue_final_message": True, "add_generation_prompt": True}, InvalidRequest),
        ([], {"continue_final_message": True}, InvalidRequest),
        ([assistant(None)], {"continue_final_message": True}, InvalidRequest),
        ([assistant([{"type": "image"}])], {"continue_final_message": True}, InvalidRequest),
        ([tool("x")], {"continue_final_message": True}, TemplateError),  # this template leaves it out
    ],
)
def test_what_cannot_be_continued_is_refused(messages, options, error):
    with pytest.raises(error):
        render("{% for m in messages if m.role != 'tool' %}{{ m.content }}{% endfor %}", messages, **options)
