"""Words at a number that make another value of it, or none."""

from __future__ import annotations

_SCALE = """
    ten tens hundred hundreds thousand thousands million millions billion billions trillion
    trillions quadrillion mil mln mn bn lakh lakhs crore crores dozen dozens gross k
    half halves third thirds quarter fourth fourths fifth fifths sixth sixths seventh sevenths
    eighth eighths ninth ninths tenth tenths hundredth hundredths thousandth thousandths
    millionth millionths percent pct permille ppm ppb
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
    most least minimum maximum min max under below above over beyond more less fewer greater
    smaller larger bigger than between within up to until approximately approx approximate
    approximation about around roughly nearly almost circa ca estimated estimate rounded some so ish
"""
_BEFORE = """
    not cannot never except negative minus plus times over mod modulo twice thrice half double
    triple than most least under below above approximately approx about around roughly nearly
    almost circa ca
"""
CHANGING_WORDS = frozenset((_SCALE + _OPERATIONS + _DENIAL_AND_BOUNDS).split())
"""In the text that is set at a number, as in `5\\text{ million}`."""
WORDS_BEFORE = frozenset(_BEFORE.split())
"""Directly before a number in prose."""
WORDS_AFTER = frozenset((_SCALE + "squared cubed factorial plus minus times divided mod").split())
"""Directly after a number in prose, where other words go on about something else."""
