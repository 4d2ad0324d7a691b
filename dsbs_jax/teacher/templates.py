"""Templates of prompts: texts with fields in braces, and nothing else of Python's formatting language."""

from __future__ import annotations

import string
from collections.abc import Sequence


def named_fields(template: str) -> frozenset[str]:
    """The fields that a template names."""
    return frozenset(field for _, field, _, _ in string.Formatter().parse(template) if field is not None)


def check_template(where: str, template: str, known: Sequence[str]) -> None:
    """Refuses a template that is broken, names an unknown field, or reaches into a field (`{input.upper}`).

    Raises:
      ValueError: in one sentence that names `where`.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the template {where} {template!r} is broken ({error}); write {{{{ for a brace.") from None
    for _, field, specification, conversion in parsed:
        if field is None:
            continue
        if field not in known:
            names = ", ".join(f"{{{name}}}" for name in known)
            raise ValueError(f"the template {where} names {{{field}}}; it may name {names}.")
        if specification or conversion:
            raise ValueError(f"the template {where} formats {{{field}}}; it can only be put in as it is.")


def choice_letter(input: str, label: str) -> str:
    """The letter of the first line `(x) LABEL` in a multiple-choice input.

    Raises:
      ValueError: where the label is none of the choices.
    """
    lines = [line.strip() for line in input.splitlines()]
    choices = [line for line in lines if len(line) > 3 and line[0] == "(" and line[2] == ")"]
    for choice in choices:
        if choice[3:].strip() == label:
            return choice[1]
    raise ValueError(
        f"The label {label!r} is none of the choices of {input[:60]!r}, which are "
        f"{', '.join(map(repr, choices)) or 'missing: there are no lines like (a) TEXT'}."
    )
