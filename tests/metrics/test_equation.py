import ast
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.metrics.equation import MAX_CHARACTERS, MAX_DEPTH, evaluate, same_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 84.0 / 2.0 )", 42),  # SVAMP's labels
        ("(84 / 2).", 42),  # the teacher's answers
        ("(84 / 2)", 42),
        ("10 - (3 + 6)", 1),
        ("((18 / 6) + (72 / 6) + (66 / 6)).", 26),
        ("(95 * 118) + (11,210 / 84).", 95 * 118 + Fraction(11210, 84)),
        ("(51 - (-11)).", 62),
        ("(-7 - 12)", -19),
        ("(249).", 249),
        ("(40 - 5 - 13)", 22),
        ("8 / 4 / 2", 1),
        ("2 + 3 * 4", 14),
        ("$5", 5),
        ("$ 5.50 - $1", Fraction(9, 2)),
        ("1,200", 1200),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("3 x 4", 12),
        ("(3)X(4)", 12),
        ("6 × 7 ÷ 2 − 1", 20),  # noqa: RUF001
        (".5 + 1.", Fraction(3, 2)),
        ("0.1 + 0.2", Fraction(3, 10)),
        ("-(-(1))", 1),
        ("- 3 * - 2", 6),
        ("+4", 4),
        ("007", 7),
    ],
)
def test_values(text: str, value: Fraction | int):
    assert evaluate(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ".",
        "()",
        "(some - 8)",
        "(53 + 17) and (14 - 10)",
        "(7x = 14)",
        "(2 * x)",
        "(7 + x - 10)",
        "7x - 10",
        "(175, 5)",
        "1,20",
        "1,2000",
        "12,34",
        "(9 + 6",
        "9 + 6)",
        ")(",
        "1 / 0",
        "1 / (2 - 2)",
        "2 ** 3",
        "2 ^ 3",
        "2 // 3",
        "1e5",
        "2(3)",
        "(2)(3)",
        "1 2",
        "1.2.3",
        "1 +",
        "* 2",
        "5 $",
        "$",
        "٣ + ٤",  # digits that int() would take
        "__import__('os').getcwd()",
        "nan",
        "inf",
        "True",
        "1_000",
        "9:30",
    ],
)
def test_everything_else_has_no_value(text: str):
    assert evaluate(text) is None


def test_same_value():
    assert same_value("( 84.0 / 2.0 )", "$42")
    assert not same_value("( 84.0 / 2.0 )", "43")
    assert not same_value("some", "some")


def test_limits():
    deepest = "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH
    assert evaluate(deepest) == 1
    assert evaluate("(" + deepest + ")") is None
    longest = "9" * MAX_CHARACTERS
    assert evaluate(longest) == int(longest)
    assert evaluate("9" + longest) is None


@pytest.mark.parametrize("unit", ["1/3+", "(", "((1)", "-", " ", "9*", "$ ", "1,000,", "\U0001d7d8", "/"])
def test_hostile_texts_are_quick(unit: str):
    started = time.perf_counter()
    for length in (MAX_CHARACTERS, 1_000_000):
        evaluate((unit * length)[:length])
    # A few hundred tokens take milliseconds and longer texts are not read; 1 s allows for a busy machine.
    assert time.perf_counter() - started < 1.0


def _python_value(node: ast.expr) -> Fraction:
    """What Python's own grammar makes of an expression, in exact arithmetic."""
    match node:
        case ast.Constant(value=value):
            return Fraction(str(value))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_python_value(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _python_value(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _python_value(left), _python_value(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise AssertionError(ast.dump(node))


_NUMBERS = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)
_EXPRESSIONS = st.recursive(
    _NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", " - ", "*", " / ", "-"]), inner).map("".join),
        inner.map("({})".format),
        inner.map("( {} )".format),
        inner.map("-{}".format),
        inner.map("+{}".format),
    ),
    max_leaves=24,
)


@given(_EXPRESSIONS)
def test_agrees_with_python(text: str):
    try:
        expected = _python_value(ast.parse(text, mode="eval").body)
    except ZeroDivisionError:
        expected = None
    if len(text) > MAX_CHARACTERS:
        expected = None
    assert evaluate(text) == expected


@given(st.text() | st.text(alphabet="0123456789.,+-*/() x$", max_size=40))
def test_any_text_gives_a_result(text: str):
    value = evaluate(text)
    assert value is None or isinstance(value, Fraction)


@given(st.fractions(max_denominator=999))
def test_a_fraction_written_down_is_read_back(value: Fraction):
    assert evaluate(str(value)) == value
