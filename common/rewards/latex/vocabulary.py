"""The vocabulary of mathematical notation: the tables that the other modules here look words up in.

They hold commands and signs of LaTeX, their plain and Unicode spellings, names of units, and the
words that change the value of the number beside them.
"""

from __future__ import annotations


def _commands(names: str) -> frozenset[str]:
    return frozenset("\\" + name for name in names.split())


# Commands

GREEK = _commands(
    """
    alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi
    rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi
    Omega ell hbar
    """
)
TRIGONOMETRIC = _commands("sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh")
HYPERBOLIC = _commands("sinh cosh tanh")
FUNCTIONS = TRIGONOMETRIC | _commands("log ln lg exp")
ACCENTS = _commands(
    """
    vec hat bar dot ddot overline tilde widehat widetilde overrightarrow overleftrightarrow overarc
    """
)
TEXT_COMMANDS = _commands(
    """
    text textbf textit textrm textsf texttt textnormal textup textsc mbox hbox mathrm mathbf
    mathit mathsf mathtt mathnormal operatorname boldsymbol bm
    """
)
DROPPED = _commands(
    """
    left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle
    textstyle scriptstyle limits nolimits quad qquad rm bf tiny small normalsize large Large LARGE
    huge Huge underline it , ; : ! ( ) [ ] >
    """
) | {"\\ ", "\\\n", "~", "$"}
"""Commands and signs of size, font and spacing, which change no value."""

# Spellings

FUNCTION_WORDS = {name[1:]: name[1:] for name in FUNCTIONS} | {
    "asin": "arcsin",
    "acos": "arccos",
    "atan": "arctan",
    "sqrt": "sqrt",
    "pi": "pi",
    "inf": "infty",
    "infinity": "infty",
    "oo": "infty",
    "theta": "theta",
    "alpha": "alpha",
    "beta": "beta",
    "lambda": "lambda",
}
"""Words of plain notation, and the commands that they stand for."""

SHORT_WORDS = frozenset(["yes", "no", "odd", "is", "the", "to", "of", "it", "not", "nor", "nan"])
"""Words of up to three letters that are not variables written side by side."""

SYNONYMS = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    r"\cdot": "*",
    r"\times": "*",
    r"\ast": "*",
    r"\div": "/",
    r"\leq": r"\le",
    r"\leqslant": r"\le",
    r"\geq": r"\ge",
    r"\geqslant": r"\ge",
    r"\neq": r"\ne",
    r"\lt": "<",
    r"\gt": ">",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lvert": "|",
    r"\rvert": "|",
    r"\vert": "|",
    r"\prime": "'",
    r"\degree": "°",
    r"\%": "%",
    r"\$": '"$',
    "£": '"£',
    "€": '"€',
    r"\or": r"\lor",
    r"\vee": r"\lor",
    r"\colon": ":",
    r"\varnothing": r"\emptyset",
    r"\simeq": r"\approx",
}

_SIGNS = {
    "−–﹣": "-",
    "×✕": r"\times ",
    "·⋅∙•": r"\cdot ",
    "÷": r"\div ",
    "⁄∕": "/",
    "≤⩽": r"\le ",
    "≥⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "°": r"\degree ",
    "′’": "'",
    "⟨〈": r"\langle ",
    "⟩〉": r"\rangle ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "ℝ": r"\mathbb{R}",
    "∨": r"\lor ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "δ": r"\delta ",
    "ε": r"\epsilon ",
    "θ": r"\theta ",
    "λ": r"\lambda ",
    "μ": r"\mu ",
    "π": r"\pi ",
    "ρ": r"\rho ",
    "σ": r"\sigma ",
    "τ": r"\tau ",
    "φϕ": r"\phi ",
    "ω": r"\omega ",
    "Δ": r"\Delta ",
    "Ω": r"\Omega ",
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅕": r"\frac{1}{5}",
    "⅖": r"\frac{2}{5}",
    "⅗": r"\frac{3}{5}",
    "⅘": r"\frac{4}{5}",
    "⅙": r"\frac{1}{6}",
    "⅚": r"\frac{5}{6}",
    "⅛": r"\frac{1}{8}",
    "⅜": r"\frac{3}{8}",
    "⅝": r"\frac{5}{8}",
    "⅞": r"\frac{7}{8}",
    "\u00a0\u2009\u202f\u2002\u2003\u3000": " ",
    "\u2061\u2062\u200b\ufeff": "",
}

TO_LATEX = {ord(sign): latex for signs, latex in _SIGNS.items() for sign in signs} | {
    0xFF01 + i: chr(0x21 + i)
    for i in range(94)  # full-width ASCII
}

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿˣ", "0123456789+-()nx")
SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n")

# Units

_UNITS = {
    "mm": "millimeter millimeters millimetre millimetres",
    "cm": "centimeter centimeters centimetre centimetres",
    "m": "meter meters metre metres",
    "km": "kilometer kilometers kilometre kilometres",
    "in": "inch inches",
    "ft": "foot feet",
    "yd": "yard yards yds",
    "mi": "mile miles",
    "mg": "milligram milligrams",
    "g": "gram grams gm",
    "kg": "kilogram kilograms kgs",
    "lb": "pound pounds lbs",
    "oz": "ounce ounces",
    "ml": "milliliter milliliters millilitre millilitres",
    "l": "liter liters litre litres",
    "s": "second seconds sec secs",
    "min": "minute minutes mins",
    "h": "hour hours hr hrs",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years yr yrs",
    "mph": "",
    "kph": "kmph",
    "$": "dollar dollars usd",
    "¢": "cent cents",
    "€": "euro euros",
    "£": "",
    "unit": "units",
}
_UNIT_NAMES = {name: unit for unit, names in _UNITS.items() for name in [unit, *names.split()]}


def unit_name(word: str) -> str | None:
    """Return the one name that stands for all spellings of a unit; None if `word` is no unit.

    A capital M is none: 5 M is five millions.
    """
    return None if word == "M" else _UNIT_NAMES.get(word.lower())


# Words beside a number that change its value

_SCALE = """
    hundred hundreds thousand thousands million millions billion billions trillion trillions
    quadrillion mil mln mn bn lakh lakhs crore crores dozen dozens gross k halves thirds fourths
    fifths sixths sevenths eighths ninths tenths hundredths thousandth thousandths millionth
    millionths percent pct permille ppm ppb
"""
_NUMBER_WORDS = """
    ten tens half third quarter fourth fifth sixth seventh eighth ninth tenth hundredth
    double doubled triple tripled quadruple halved twice thrice
    two three four five six seven eight nine eleven twelve twenty thirty forty fifty
    base binary octal hexadecimal hex
"""
_OPERATIONS = """
    squared cubed factorial plus minus times divided multiplied over negative remainder r mod modulo
    raised power powers exponent root roots inverse reciprocal opposite added subtracted
"""
_DENIAL_AND_BOUNDS = """
    is was are not cannot wrong incorrect false untrue never no nor none neither except excluding
    excluded without but instead unless if maybe perhaps possibly probably unknown guess impossible
    most least minimum maximum max under below above over beyond more less fewer greater
    smaller larger bigger than between within up to until approximately approx approximate
    approximation about around roughly nearly almost circa ca estimated estimate rounded some so ish
"""
CHANGING_WORDS = frozenset((_SCALE + _NUMBER_WORDS + _OPERATIONS + _DENIAL_AND_BOUNDS).split())
r"""Words that change a number's value in the text that is set beside it, as in `5\text{
million}`."""
SCALE_WORDS = frozenset(_SCALE.split())
"""Those that do so directly after it in prose, where other words go on about something else."""
