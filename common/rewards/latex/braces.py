"""Arguments that LaTeX does not need braces for, put in braces: the last step of `tokens.py`."""

from __future__ import annotations


def with_binomials(raw: list[str]) -> list[str]:
    r"""Write `{n \choose k}` as `\binom{n}{k}`."""
    tokens: list[str] = []
    opened: list[int] = []
    chosen: set[int] = set()  # braces that hold a binomial
    for token in raw:
        if token == "{":
            opened.append(len(tokens))
        elif token == r"\choose" and opened and opened[-1] not in chosen:
            chosen.add(opened[-1])
            tokens += ["}", "{"]
            continue
        elif token == "}" and opened:
            opened.pop()
        tokens.append(token)
    return [
        piece
        for i, token in enumerate(tokens)
        for piece in ([r"\binom", token] if i in chosen else [token])
    ]


def with_braces(raw: list[str]) -> list[str]:
    r"""Write `\frac12` and `\frac1{2}` as `\frac{1}{2}`; of a number LaTeX takes one digit."""
    tokens: list[str] = []
    missing = 0  # arguments that the last fraction lacks
    depth = 0
    inside: list[tuple[int, int]] = []  # (depth, missing) of groups that are arguments
    for token in raw:
        pieces = [token]
        if missing and token.isdecimal() and len(token) > 1:
            pieces = [*token[:missing], token[missing:]]
        for piece in filter(None, pieces):
            if missing and piece not in ("{", r"\frac", r"\binom") and piece not in "+-":
                tokens += ["{", piece, "}"]
                missing -= 1
                continue
            tokens.append(piece)
            if piece == "{":
                depth += 1
                inside.append((depth, max(missing - 1, 0)))
                missing = 0
            elif piece == "}" and inside:
                depth -= 1
                missing = inside.pop()[1]
            if piece in (r"\frac", r"\binom"):
                missing = 2
    return tokens
