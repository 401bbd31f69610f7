"""Contracts of the parts: one suite a shelf, which runs over every part on it."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType


def code_lines(module: ModuleType) -> int:
    """Lines of a module without its docstrings."""
    text = inspect.getsource(module)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    first = [
        each.body[0] for each in ast.walk(ast.parse(text)) if isinstance(each, documented) and ast.get_docstring(each)
    ]
    return len(text.splitlines()) - sum(each.end_lineno - each.lineno + 1 for each in first)
