"""Kinds of mathematical questions: each function draws one with its answer in LaTeX.

No question shows an expression that equals its answer; `questions.py` says why.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from workflows.latex_text import fraction, latex, polynomial, root

Draw = Callable[[int, int], int]
"""Draws a whole number between two bounds, both included."""

Kind = Callable[[Draw], tuple[str, str]]
"""Draws a question and its answer."""

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PARTS = ("third", "quarter", "fifth", "sixth", "seventh", "eighth", "ninth")


# Writing mathematics


def sum_of_two(draw: Draw) -> tuple[str, str]:
    a, b = draw(1, 9), draw(1, 9)
    return f"What is the sum of {a} and {b}?", str(a + b)


def half(draw: Draw) -> tuple[str, str]:
    number = draw(1, 30)
    return f"What is half of {number}?", fraction(number, 2)


def quotient(draw: Draw) -> tuple[str, str]:
    a, b = draw(1, 9), draw(2, 9)
    return f"What is {a} divided by {b}?", fraction(a, b)


def fraction_in_words(draw: Draw) -> tuple[str, str]:
    bottom = draw(3, 9)
    top = draw(1, bottom - 1)
    part = PARTS[bottom - 3] + ("" if top == 1 else "s")
    return f"Write {NUMBERS[top - 1]} {part} as a fraction.", fraction(top, bottom)


def root_of(draw: Draw) -> tuple[str, str]:
    square = draw(2, 30)
    return f"What is the square root of {square}?", root(square)


def square_of(draw: Draw) -> tuple[str, str]:
    number = draw(2, 20)
    return f"What is the square of {number}?", str(number**2)


def sum_of_terms(draw: Draw) -> tuple[str, str]:
    b, c = draw(1, 5), draw(1, 9)
    times = "" if b == 1 else f"{b} times "
    return f"Write as an expression: x squared plus {times}x plus {c}.", polynomial(1, b, c)


def point(draw: Draw) -> tuple[str, str]:
    x, y = draw(-4, 9), draw(-4, 9)
    return f"Which point has the x-coordinate {x} and the y-coordinate {y}?", f"({x}, {y})"


def small_set(draw: Draw) -> tuple[str, str]:
    first, last = draw(1, 8), draw(3, 5)
    found = range(first, first + last)
    names = f"from {found[0]} to {found[-1]}"
    return f"Write the set of the whole numbers {names}.", rf"\{{{', '.join(map(str, found))}\}}"


def reciprocal_of_whole(draw: Draw) -> tuple[str, str]:
    number = draw(2, 20)
    return f"What is the reciprocal of {number}?", fraction(1, number)


# Fractions


def part_of_whole(draw: Draw) -> tuple[str, str]:
    whole = draw(4, 20)
    part = draw(1, whole - 1)
    return f"What fraction of {whole} is {part}?", fraction(part, whole)


def part_of_hour(draw: Draw) -> tuple[str, str]:
    minutes = draw(1, 59)
    return f"What fraction of an hour is {minutes} minutes?", fraction(minutes, 60)


def sum_of_parts(draw: Draw) -> tuple[str, str]:
    first, second = draw(2, 9), draw(2, 9)
    text = (
        rf"Anna eats $\frac{{1}}{{{first}}}$ of a cake and Ben eats $\frac{{1}}{{{second}}}$ of "
        "another cake of the same size. How many cakes is that together?"
    )
    return text, latex(Fraction(1, first) + Fraction(1, second))


def what_is_left(draw: Draw) -> tuple[str, str]:
    whole = draw(4, 12)
    used = draw(1, whole - 1)
    if 2 * used == whole:  # Else what is left equals what the question shows.
        used += 1
    text = f"A driver has used ${fraction(used, whole)}$ of a full tank. What fraction is left?"
    return text, fraction(whole - used, whole)


def reciprocal(draw: Draw) -> tuple[str, str]:
    top, bottom = draw(2, 12), draw(13, 25)
    return f"What is the reciprocal of ${fraction(top, bottom)}$?", fraction(bottom, top)


def fraction_of(draw: Draw) -> tuple[str, str]:
    bottom, number = draw(3, 6), draw(4, 24)
    top = draw(1, bottom - 1)
    text = f"How many kilometers are ${fraction(top, bottom)}$ of {number} kilometers?"
    return text, latex(Fraction(top, bottom) * number)


def probability(draw: Draw) -> tuple[str, str]:
    red, blue = draw(1, 9), draw(1, 9)
    text = (
        f"A bag holds {red} red and {blue} blue balls. One ball is drawn at random. What is the "
        "probability that it is red?"
    )
    return text, fraction(red, red + blue)


def mean_of_three(draw: Draw) -> tuple[str, str]:
    a, b, c = (draw(1, 12) for _ in range(3))
    return f"What is the mean of the numbers {a}, {b} and {c}?", fraction(a + b + c, 3)


# Percent and powers


def percent_of(draw: Draw) -> tuple[str, str]:
    percent, number = 5 * draw(1, 15), 2 * draw(2, 40)
    return rf"What is {percent}\% of {number}?", fraction(percent * number, 100)


def price_rise(draw: Draw) -> tuple[str, str]:
    percent, price = 10 * draw(1, 9), 10 * draw(1, 12)
    text = rf"A price of {price} euros rises by {percent}\%. How many euros is it then?"
    return text, fraction(price * (100 + percent), 100)


def doubling(draw: Draw) -> tuple[str, str]:
    cells, hours = draw(1, 6), draw(2, 6)
    text = (
        f"There are {cells} cells in a dish, and their number doubles every hour. How many cells "
        f"are there after {hours} hours?"
    )
    return text, str(cells * 2**hours)


def cube_volume(draw: Draw) -> tuple[str, str]:
    edge, of = draw(2, 12), draw(0, 1)
    what, answer = (("volume", edge**3), ("surface area", 6 * edge**2))[of]
    return f"A cube has edges of length {edge}. What is its {what}?", str(answer)


# Roots and circles


def square_side(draw: Draw) -> tuple[str, str]:
    area = draw(2, 50)
    return f"A square has the area {area}. How long is its side?", root(area)


def hypotenuse(draw: Draw) -> tuple[str, str]:
    a, b = draw(1, 9), draw(1, 9)
    text = f"The legs of a right triangle have the lengths {a} and {b}. How long is its hypotenuse?"
    return text, root(a * a + b * b)


def circle(draw: Draw) -> tuple[str, str]:
    radius, of = draw(2, 12), draw(0, 1)
    what, factor = (("area", radius**2), ("circumference", 2 * radius))[of]
    text = f"A circle has the radius {radius}. What is its exact {what}, not rounded?"
    return text, rf"{factor}\pi"


# Equations


def linear_equation(draw: Draw) -> tuple[str, str]:
    factor, summand, total = draw(2, 9), draw(1, 12), draw(1, 20)
    text = f"Solve ${factor}x + {summand} = {total}$ for $x$."
    return text, fraction(total - summand, factor)


def proportion(draw: Draw) -> tuple[str, str]:
    a, b, c = draw(2, 9), draw(1, 9), draw(2, 9)
    text = rf"What is $x$ if $\frac{{x}}{{{a}}} = \frac{{{b}}}{{{c}}}$?"
    return text, fraction(a * b, c)


def quadratic_equation(draw: Draw) -> tuple[str, str]:
    low = draw(-6, 5)
    high = draw(low + 1, 6)
    equation = polynomial(1, -(low + high), low * high)
    return f"Give the set of all solutions of ${equation} = 0$.", rf"\{{{low}, {high}\}}"


# Polynomials


def derivative(draw: Draw) -> tuple[str, str]:
    a, b, c = draw(1, 9), draw(-9, 9), draw(-9, 9)
    text = f"What is the derivative of ${polynomial(a, b, c)}$ with respect to $x$?"
    return text, polynomial(0, 2 * a, b)


def rectangle(draw: Draw) -> tuple[str, str]:
    a, b, of = draw(1, 9), draw(1, 9), draw(0, 1)
    answers = (("perimeter", polynomial(0, 4, 2 * (a + b))), ("area", polynomial(1, a + b, a * b)))
    what, answer = answers[of]
    text = f"A rectangle has the sides $x + {a}$ and $x + {b}$. What is its {what}, as a polynomial"
    return f"{text} in $x$?", answer


# Points and intervals


def midpoint(draw: Draw) -> tuple[str, str]:
    a, b, c, d = draw(-6, 1), draw(-6, 9), draw(2, 9), draw(-6, 9)
    text = f"What is the midpoint of the points $({a}, {b})$ and $({c}, {d})$?"
    return text, f"({fraction(a + c, 2)}, {fraction(b + d, 2)})"


def moved_point(draw: Draw) -> tuple[str, str]:
    x, y, right, down = draw(-5, 9), draw(-5, 9), draw(1, 9), draw(1, 9)
    text = f"The point $({x}, {y})$ is moved {right} to the right and {down} down. Where is it now?"
    return text, f"({x + right}, {y - down})"


def interval(draw: Draw) -> tuple[str, str]:
    low = draw(-9, 8)
    high = draw(low + 1, 9)
    left, right = draw(0, 1), draw(0, 1)
    ends = f"{low} {_belongs(left)} and {high} {_belongs(right)}"
    text = f"Write as an interval: all real numbers between {low} and {high}, where {ends}."
    return text, f"{'(['[left]}{low}, {high}{')]'[right]}"


def neighbourhood(draw: Draw) -> tuple[str, str]:
    centre, distance = draw(1, 9), draw(1, 6)
    text = f"Which real numbers have a distance of less than {distance} from {centre}?"
    return f"{text} Answer with an interval.", f"({centre - distance}, {centre + distance})"


def _belongs(is_included: int) -> str:
    return "belongs to them" if is_included else "does not belong to them"


EASY: tuple[Kind, ...] = (
    *(sum_of_two, half, quotient, fraction_in_words, root_of, square_of),
    *(sum_of_terms, point, small_set, reciprocal_of_whole),
)
"""Easy for a model of a hundred million parameters: the answer mostly has only to be written."""

HARDER: tuple[Kind, ...] = (
    *(part_of_whole, part_of_hour, sum_of_parts, what_is_left, reciprocal, fraction_of),
    *(probability, mean_of_three, percent_of, price_rise, doubling, cube_volume),
    *(square_side, hypotenuse, circle, linear_equation, proportion, quadratic_equation),
    *(derivative, rectangle, midpoint, moved_point, interval, neighbourhood),
)
