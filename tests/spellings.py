"""Calls as models of several families spell them, and texts in pieces."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

DEEPSEEK_CALL = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"


def _joined(form: str, members: dict[str, str]) -> str:
    return "".join(form.format(key, value) for key, value in members.items())


def xml(name: str, **members: str) -> str:
    inner = _joined("<parameter={}>\n{}\n</parameter>\n", members)
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def seed(name: str, **members: str) -> str:
    inner = _joined("<parameter={}>{}</parameter>\n", members)
    return f"<seed:tool_call>\n<function={name}>\n{inner}</function>\n</seed:tool_call>"


def glm(name: str, **members: str) -> str:
    inner = _joined("<arg_key>{}</arg_key>\n<arg_value>{}</arg_value>\n", members)
    return f"<tool_call>{name}\n{inner}</tool_call>"


def minimax(name: str, **members: str) -> str:
    inner = _joined('<parameter name="{}">{}</parameter>\n', members)
    return f'<minimax:tool_call>\n<invoke name="{name}">\n{inner}</invoke>\n</minimax:tool_call>'


def deepseek(*calls: tuple[str, str]) -> str:
    inner = "\n".join(DEEPSEEK_CALL.format(*call) for call in calls)
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def cut(text: str, data: Any) -> list[str]:
    """A text in pieces that hypothesis draws."""
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
