"""Names of units, for `tokens.py` and `units.py`."""

from __future__ import annotations

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
    """One name for all ways to write a unit; None for a word that names none."""
    return _UNIT_NAMES.get(word.lower())
