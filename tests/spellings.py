"""Calls as models of several families spell them: a name and members of its arguments to text."""

from __future__ import annotations

DEEPSEEK_CALL = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"


def xml(name: str, **members: str) -> str:
    inner = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in members.items())
    return f"<tool_call>\n<function={name}>\n{inner}</function>\n</tool_call>"


def glm(name: str, **members: str) -> str:
    inner = "".join(f"<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n" for k, v in members.items())
    return f"<tool_call>{name}\n{inner}</tool_call>"


def minimax(name: str, **members: str) -> str:
    inner = "".join(f'<parameter name="{k}">{v}</parameter>\n' for k, v in members.items())
    return f'<minimax:tool_call>\n<invoke name="{name}">\n{inner}</invoke>\n</minimax:tool_call>'


def seed(name: str, **members: str) -> str:
    inner = "".join(f"<parameter={key}>{value}</parameter>\n" for key, value in members.items())
    return f"<seed:tool_call>\n<function={name}>\n{inner}</function>\n</seed:tool_call>"


def deepseek(*calls: tuple[str, str]) -> str:
    inner = "\n".join(DEEPSEEK_CALL.format(*call) for call in calls)
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"
