"""Arithmetic written by models and teachers, evaluated without running it.

The paper's reference code hands a model's output to Python's `eval`. Here it is parsed: numbers, `+ - * /` and
parentheses become one exact fraction, and everything else is simply not an equation.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from fractions import Fraction

# A text of n characters gives numbers of at most n digits (there is no power operator), so this limit also bounds
# the numbers and the time. The longest equation in SVAMP and in PaLM's answers to it has 44 characters.
MAX_CHARACTERS = 512
MAX_DEPTH = 64

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\$\s*)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+))
      | (?P<times>[xX](?=\s*[0-9.$(]))
      | (?P<symbol>[-+*/()])
    )\s*""",
    re.VERBOSE | re.ASCII,
)
_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})  # noqa: RUF001 - the signs people type
_BINARY: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_PRECEDENCE = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2, "negate": 3}


def evaluate(text: str) -> Fraction | None:
    """The exact value of an arithmetic expression, or None where `text` is not one.

    Understood: decimals (`84.0`, `.5`), thousands commas (`1,200`), a dollar sign before a number, `+ - * /`, the
    typographic signs, `x` as "times" before a number or a parenthesis (`3 x 4`; in `x + 3` it is an unknown, which has
    no value), parentheses, signs (`-(-1)`), one final full stop. None for everything else: words, `7x = 14`, `a and b`,
    unbalanced parentheses, division by zero, more than `MAX_CHARACTERS` characters or `MAX_DEPTH` open parentheses.

    One pass with two stacks (Dijkstra's shunting yard): linear in the number of tokens, no recursion.
    """
    if len(text) > MAX_CHARACTERS:
        return None
    text = text.translate(_SIGNS).strip().removesuffix(".")
    values: list[Fraction] = []
    operators: list[str] = []
    depth = 0
    operand_next = True
    position = 0
    try:
        while position < len(text):
            token = _TOKEN.match(text, position)
            if token is None:
                return None
            position = token.end()
            symbol = "*" if token["times"] else token["symbol"]
            if token["number"]:
                if not operand_next:
                    return None
                values.append(Fraction(token["number"].replace("$", "").replace(",", "").strip()))
                operand_next = False
            elif symbol == "(":
                depth += 1
                if not operand_next or depth > MAX_DEPTH:
                    return None
                operators.append(symbol)
            elif operand_next:
                if symbol not in ("+", "-"):
                    return None
                if symbol == "-":
                    operators.append("negate")
            elif symbol == ")":
                depth -= 1
                if depth < 0:
                    return None
                _reduce(values, operators, 1)
                operators.pop()
            else:
                _reduce(values, operators, _PRECEDENCE[symbol])
                operators.append(symbol)
                operand_next = True
        if operand_next or depth:
            return None
        _reduce(values, operators, 1)
    except ZeroDivisionError:
        return None
    return values[0]


def same_value(a: str, b: str) -> bool:
    """Whether both texts evaluate, and to the same number: `( 84.0 / 2.0 )` and `$42`."""
    value = evaluate(a)
    return value is not None and value == evaluate(b)


def _reduce(values: list[Fraction], operators: list[str], precedence: int) -> None:
    """Applies the waiting operators that bind at least as tightly as `precedence`, up to the last parenthesis."""
    while operators and _PRECEDENCE[operators[-1]] >= precedence:
        name = operators.pop()
        right = values.pop()
        values.append(-right if name == "negate" else _BINARY[name](values.pop(), right))
