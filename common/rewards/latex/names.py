"""Names and signs of mathematical notation: tables for `tokens.py`."""

from __future__ import annotations

GREEK = frozenset(
    "\\" + name
    for name in [
        "alpha",
        "beta",
        "gamma",
        "delta",
        "epsilon",
        "varepsilon",
        "zeta",
        "eta",
        "theta",
        "vartheta",
        "iota",
        "kappa",
        "lambda",
        "mu",
        "nu",
        "xi",
        "rho",
        "sigma",
        "tau",
        "upsilon",
        "phi",
        "varphi",
        "chi",
        "psi",
        "omega",
        "Gamma",
        "Delta",
        "Theta",
        "Lambda",
        "Xi",
        "Pi",
        "Sigma",
        "Phi",
        "Psi",
        "Omega",
        "ell",
    ]
)

TRIGONOMETRIC = frozenset(
    "\\" + name
    for name in [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
    ]
)
HYPERBOLIC = frozenset({r"\sinh", r"\cosh", r"\tanh"})
FUNCTIONS = TRIGONOMETRIC | HYPERBOLIC | {r"\log", r"\ln", r"\lg", r"\exp"}

ACCENTS = frozenset(
    "\\" + name
    for name in [
        "vec",
        "hat",
        "bar",
        "overline",
        "tilde",
        "widehat",
        "widetilde",
        "overrightarrow",
        "overleftrightarrow",
        "overarc",
    ]
)

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
"""Words of up to three letters that are no variables side by side."""

TEXT_COMMANDS = frozenset(
    "\\" + name
    for name in [
        "text",
        "textbf",
        "textit",
        "textrm",
        "textsf",
        "texttt",
        "textnormal",
        "textup",
        "textsc",
        "mbox",
        "hbox",
        "mathrm",
        "mathbf",
        "mathit",
        "mathsf",
        "mathtt",
        "mathnormal",
        "operatorname",
        "boldsymbol",
        "bm",
    ]
)

DROPPED = frozenset(
    [
        r"\left",
        r"\right",
        r"\big",
        r"\Big",
        r"\bigg",
        r"\Bigg",
        r"\bigl",
        r"\bigr",
        r"\Bigl",
        r"\Bigr",
        r"\biggl",
        r"\biggr",
        r"\Biggl",
        r"\Biggr",
        r"\middle",
        r"\displaystyle",
        r"\textstyle",
        r"\scriptstyle",
        r"\limits",
        r"\nolimits",
        r"\quad",
        r"\qquad",
        r"\rm",
        r"\bf",
        r"\it",
        r"\,",
        r"\;",
        r"\:",
        r"\!",
        r"\(",
        r"\)",
        r"\[",
        r"\]",
        r"\>",
        r"~",
        r"$",
    ]
) | {"\\ ", "\\\n"}

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
