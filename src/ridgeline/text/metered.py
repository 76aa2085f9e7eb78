"""The jinja2 environment in which chat templates run: allow-lists, and a budget behind every operation.

Owns what a template may call and touch, and the rewriting of a parsed template that routes every loop,
output, comparison and literal through the render's `Budget`. Nothing here holds a render's state: the budget
travels in the template context, which every hook of jinja2's sandbox receives. It must not know messages or
models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from types import BuiltinMethodType, TracebackType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.defaults import DEFAULT_FILTERS  # type: ignore[attr-defined]
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Cycler, Joiner, Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from ridgeline.errors import TemplateError
from ridgeline.text.sandbox import FILTER_BOUNDS, METHOD_BOUNDS, Budget, bound_of_operator

BUDGET = "budget of this render"  # its key in the context; not an identifier, so no template can name it
_TICK, _MADE, _CONCAT = "~tick", "~made", "~concat"  # filters; likewise
_MACRO_STEPS = 10
_CALL_EXTRAS = ("_loop_vars", "_block_vars")  # jinja2's own, added to a call inside a loop or a block


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _names(
    """abs batch capitalize center count d default dictsort first float format groupby indent int items join
    last length list lower map max min reject rejectattr replace reverse round select selectattr slice sort string
    sum title trim truncate unique upper"""
)
_STR_METHODS = _names(
    """capitalize casefold center count endswith find format index isalnum isalpha isascii isdecimal isdigit
    isidentifier islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition
    removeprefix removesuffix replace rfind rindex rjust rpartition rsplit rstrip split splitlines startswith
    strip swapcase title upper zfill"""
)
_SAFE_ATTRIBUTES: dict[type, frozenset[str]] = {
    str: _STR_METHODS,
    dict: _names("copy get items keys values"),
    list: _names("copy count index"),
    tuple: _names("count index grouper list"),  # the last two: what `groupby` yields
}


def compile_template(source: str, clock: Callable[[], datetime]) -> jinja2.Template:
    """A template to render with a `Budget` under the key BUDGET. Raises TemplateError if it does not compile.

    `clock` is what `strftime_now` reads.
    """
    env = _Environment(clock)
    try:
        tree = _Meter().visit(env.parse(source))
        tree.set_environment(env)
        return jinja2.Template.from_code(env, env.compile(tree), env.make_globals(None))
    except jinja2.TemplateSyntaxError as error:
        reason = f"line {error.lineno}: {error.message}"
        raise TemplateError(f"the chat template does not compile: {reason}") from error
    except TemplateError as error:
        raise TemplateError(f"the chat template does not compile: {error}") from error
    except Exception as error:  # Python's own compiler, on what jinja2 generated
        raise TemplateError(f"the chat template does not compile: {_summary(error)}") from error


def describe(template: jinja2.Template, error: Exception) -> str:
    """One bounded line on what went wrong while rendering, with the template's line where it is known."""
    line = None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals is template.root_render_func.__globals__:
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return _summary(error) if line is None else f"line {line}: {_summary(error)}"


def _summary(error: Exception) -> str:
    text = str(error)[:500]
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}"


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, stricter. Immutable once made, so threads may share it."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, clock: Callable[[], datetime]) -> None:
        extensions = [_Generation, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_text_of)
        ours: dict[str, Callable[..., Any]] = {"tojson": _tojson, "safe": str, "escape": _escape, "e": _escape}
        self.filters = {name: _metered(name, DEFAULT_FILTERS[name]) for name in _FILTERS}
        self.filters |= {name: _metered(name, function) for name, function in ours.items()}
        self.filters |= {_TICK: _tick, _MADE: _made, _CONCAT: _concat}
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: _strftime(clock(), form)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _SAFE_ATTRIBUTES.items():
            if isinstance(obj, kind):
                return attr in names
        ours = isinstance(obj, Namespace | LoopContext | Macro | Cycler | Joiner)
        return ours and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is dealt with in `call`, where the budget is at hand."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _budget(context)
        budget.reserve(bound_of_operator(budget, operator, left, right))
        return budget.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(__context)
        budget.step(_MACRO_STEPS if isinstance(__obj, Macro) else 1)
        named = {name: value for name, value in kwargs.items() if name not in _CALL_EXTRAS}
        for arg in (*args, *named.values()):
            budget.measure(arg)
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str):
            return budget.made(_call_str_method(__self, budget, __obj, args, named), deep=True)
        budget.enter()
        try:
            return budget.made(super().call(__context, __obj, *args, **kwargs))
        finally:
            budget.leave()


def _budget(context: Context) -> Budget:
    # Not `context[...]`: that looks at the template's own variables first.
    budget: Budget = context.parent[BUDGET]
    return budget


def _call_str_method(
    env: _Environment,
    budget: Budget,
    method: BuiltinMethodType,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    text = str(method.__self__)
    bound = METHOD_BOUNDS.get(method.__name__)
    if bound is not None:
        budget.reserve(bound(budget, text, *args, **kwargs))
    if method.__name__ == "format":
        return SandboxedFormatter(env).vformat(text, args, kwargs)
    return method(*args, **kwargs)


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter, measured before and after. Asking for the context keeps jinja2 from folding it as a constant."""
    wants = getattr(function, "jinja_pass_arg", None)
    bound = FILTER_BOUNDS.get(name)

    @pass_context
    def metered(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget = _budget(context)
        for operand in (value, *args, *kwargs.values()):
            budget.measure(operand)
        if bound is not None:
            budget.reserve(bound(budget, value, *args, **kwargs))
        leading = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        first = () if wants is None else (leading[wants.name],)
        return budget.made(function(*first, value, *args, **kwargs), deep=True)

    return metered


class _Meter(NodeTransformer):
    """Rewrites a parsed template so that everything that takes time or space meets the budget."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        tick = _filter(_TICK, nodes.Const(None, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(tick, node.test, lineno=node.lineno)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        # Plain text would skip `finalize`, which counts what is written; constants do not.
        node.nodes = [
            nodes.Const(part.data, lineno=part.lineno) if isinstance(part, nodes.TemplateData) else part
            for part in node.nodes
        ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(_CONCAT, node.nodes[0], *node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(_MADE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(_MADE, node) if node.ctx == "load" else node

    def visit_Call(self, node: nodes.Call | nodes.Filter | nodes.Test) -> nodes.Expr:
        self.generic_visit(node)
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise TemplateError(f"line {node.lineno}: a call with * or ** is not allowed in a chat template")
        return _filter(_MADE, node) if isinstance(node, nodes.Test) else node

    def _made(self, node: nodes.Expr) -> nodes.Expr:
        self.generic_visit(node)
        return _filter(_MADE, node)

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise TemplateError(f"line {node.lineno}: {type(node).__name__} has no meaning in a chat template")

    visit_Filter = visit_Test = visit_Call
    visit_List = visit_Dict = visit_Compare = _made
    visit_Include = visit_Import = visit_FromImport = visit_Extends = visit_Block = _refuse
    visit_EvalContextModifier = visit_ScopedEvalContextModifier = _refuse


def _filter(name: str, value: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(value, name, list(args), [], None, None, lineno=value.lineno)


class _Generation(Extension):
    """`{% generation %}` marks what training should learn; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """`namespace()` whose text does not grow with what it holds."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"namespace attribute {name!r} begins with an underscore")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<namespace>"


@pass_context
def _tick(context: Context, value: Any) -> bool:
    _budget(context).step()
    return True


@pass_context
def _made(context: Context, value: Any) -> Any:
    return _budget(context).made(value)


@pass_context
def _concat(context: Context, *values: Any) -> Any:
    budget = _budget(context)
    budget.reserve(sum(map(budget.measure, values)))
    return budget.made("".join(map(str, values)))


@pass_context
def _text_of(context: Context, value: Any) -> Any:
    """What `{{ value }}` writes."""
    budget = _budget(context)
    budget.measure(value)
    return budget.made(str(value))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face's: no HTML escapes, other alphabets as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _escape(value: Any) -> str:
    # Plain text, not markupsafe's type, whose operators escape, and so enlarge, whatever they touch.
    return str(escape(value))


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message)[:1000])


def _strftime(now: datetime, form: str) -> str:
    # C libraries pad to any width given between % and the letter.
    if len(form) > 200 or re.search(r"%[^A-Za-z%]*\d", form):
        raise TemplateError("strftime_now: the format is too long or gives a width")
    return now.strftime(form)
