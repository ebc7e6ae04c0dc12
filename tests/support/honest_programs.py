"""Ordinary programs as models write them, with tests that they pass."""

from __future__ import annotations

from typing import Any

from support.honest_scripts import READERS, SCRIPTS


def stdio(stdin: str, stdout: str) -> dict[str, Any]:
    return {"kind": "stdio", "stdin": stdin, "stdout": stdout}


def call(function: str, *arguments: Any, expected: Any) -> dict[str, Any]:
    return {
        "kind": "call",
        "function": function,
        "arguments": list(arguments),
        "expected": expected,
    }


SUM = [stdio("3\n1 2\n3\n", "6\n"), stdio("1\n5", "5")]
"""The input is how many numbers there are, then the numbers; the output is their sum."""

FUNCTIONS: dict[str, tuple[str, list[Any]]] = {
    "recursion": (
        """
import sys
from functools import lru_cache
sys.setrecursionlimit(10 ** 5)
@lru_cache(None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
@lru_cache(None)
def memo(n): return 0 if n == 0 else 1 + memo(n - 1)
def depth(n): return 0 if n == 0 else 1 + depth(n - 1)""",
        [
            call("fib", 90, expected=2880067194370816120),
            call("depth", 90000, expected=90000),
            call("memo", 3000, expected=3000),
        ],
    ),
    "classes": (
        """
from __future__ import annotations
from dataclasses import dataclass
from typing import Optional, get_type_hints
@dataclass(order=True)
class Node:
    value: int
    next: Optional[Node] = None
    def __iter__(self):
        yield self.value
        if self.next: yield from self.next
def chain(v):
    get_type_hints(Node)
    head = None
    for x in reversed(v): head = Node(x, head)
    return list(head)""",
        [call("chain", [3, 1, 2], expected=[3, 1, 2])],
    ),
    "threads": (
        """
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.pool import ThreadPool
def square(v):
    with ThreadPoolExecutor(8) as pool, ThreadPool(2) as other:
        return list(pool.map(lambda x: x * x, other.map(int, v)))
def default(n):
    with ThreadPoolExecutor() as pool:
        return sum(f.result() for f in as_completed([pool.submit(pow, i, 2) for i in range(n)]))""",
        [
            call("square", [1, 2, 3], expected=[1, 4, 9]),
            call("default", 200, expected=sum(i * i for i in range(200))),
        ],
    ),
    "floats": (
        """
import math, statistics, fractions
from decimal import Decimal
def mean(v): return sum(v) / len(v)
def root(x): return float(Decimal(x).sqrt())
def odd(): return [math.inf, -math.inf, math.nan, -0.0]
def third(): return float(fractions.Fraction(1, 3)), statistics.median([1, 2, 4])""",
        [
            call("mean", [0.1, 0.2, 0.3], expected=0.2),
            call("mean", [2, 4], expected=3.0),
            call("root", 2, expected=1.4142135623730951),
            call("odd", expected=[float("inf"), float("-inf"), float("nan"), 0.0]),
            call("third", expected=[1 / 3, 2]),
        ],
    ),
    "the usual modules": (
        """
import abc, array, base64, bisect, bz2, calendar, collections, contextlib, copy, csv, datetime
import difflib, enum, functools, glob, gzip, hashlib, heapq, html, inspect, io, itertools, json
import locale, lzma, math, multiprocessing, numbers, operator, os, pathlib, pickle, platform
import pprint, random, re, secrets, shutil, sqlite3, ssl, statistics, string, struct, subprocess
import tempfile, textwrap, time, timeit, traceback, typing, unicodedata, unittest, urllib.parse
import uuid, warnings, weakref, xml.etree.ElementTree, zipfile, zlib
def digest(s): return hashlib.sha256(s.encode()).hexdigest()[:8]
def top(v, k): return heapq.nlargest(k, v)
def words(s): return collections.Counter(re.findall(r"\\w+", s))
def table():
    db = sqlite3.connect(":memory:"); db.execute("create table t (x)")
    db.executemany("insert into t values (?)", [(1,), (2,)])
    return db.execute("select sum(x) from t").fetchone()[0]
def fill(n):
    with tempfile.NamedTemporaryFile("w+") as f:
        f.write("x" * n); f.flush()
        return pathlib.Path(f.name).stat().st_size""",
        [
            call("digest", "abc", expected="ba7816bf"),
            call("top", [5, 1, 9, 3], 2, expected=[9, 5]),
            call("words", "a b a", expected={"a": 2, "b": 1}),
            call("table", expected=3),
            call("fill", 10**6, expected=10**6),
        ],
    ),
    "dates": (
        """
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo
def offset(zone): return datetime(2024, 7, 1, tzinfo=ZoneInfo(zone)).utcoffset().total_seconds()
def later(s, d): return (datetime.fromisoformat(s) + timedelta(days=d)).strftime("%d %b %Y")""",
        [
            call("offset", "Europe/Berlin", expected=7200.0),
            call("later", "2024-02-28", 2, expected="01 Mar 2024"),
        ],
    ),
    "generators": (
        """
from itertools import *
def primes():
    yield 2
    for n in count(3, 2):
        if all(n % d for d in takewhile(lambda d: d * d <= n, range(3, n, 2))): yield n
def first(n): return list(islice(primes(), n))
def runs(s): return [(k, len(list(g))) for k, g in groupby(s)]
def pairs(v): return {frozenset(p) for p in combinations(v, 2)}""",
        [
            call("first", 5, expected=[2, 3, 5, 7, 11]),
            call("runs", "aab", expected=[["a", 2], ["b", 1]]),
            "assert pairs([1, 2, 3]) == {frozenset([1, 2]), frozenset([1, 3]), frozenset([3, 2])}",
        ],
    ),
    "prints, and a main part that waits": (
        """
print("hello")
def add(a, b):
    print("adding", a, b)
    return a + b
if __name__ == "__main__":
    print(add(int(input("a? ")), int(input("b? "))))""",
        [call("add", 1, 2, expected=3), call("add", "x", "y", expected="xy")],
    ),
    "class Solution": (
        """
from typing import List
class Solution:
    def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = {}
        for i, x in enumerate(nums):
            if target - x in seen: return [seen[target - x], i]
            seen[x] = i""",
        [call("twoSum", [2, 7, 11, 15], 9, expected=[0, 1])],
    ),
    "state, changed arguments": (
        """
memo = {}
def sort(v):
    memo[len(memo)] = v
    v.sort()
    return v
def calls(): return len(memo)""",
        [
            call("sort", [2, 1], expected=[1, 2]),
            call("sort", [3, 1, 2], expected=[1, 2, 3]),
            call("calls", expected=2),
        ],
    ),
    "named results": (
        """
from collections import namedtuple, OrderedDict, defaultdict, Counter
from enum import IntEnum
class Colour(IntEnum): RED = 1
Point = namedtuple("Point", "x y")
def f(): return [Point(1, 2), OrderedDict(a=1), defaultdict(int, b=2), Colour.RED]""",
        ["assert f() == [(1, 2), {'a': 1}, {'b': 2}, 1]"],
    ),
    "large integers, text": (
        """
def power(n): return 7 ** n
def text(): return 'äöü \\U0001f600 \\x00 \\u2028 "\\\\\\n'
def raw(): return b"\\xff\\x00" """,
        [
            f"assert power(6000) == {7**6000:#x}",
            "assert text() == 'äöü \\U0001f600 \\x00 \\u2028 \"\\\\\\n'",
            "assert raw() == b'\\xff\\x00'",
        ],
    ),
    "memory": (
        """
def sieve(n):
    s = bytearray([1]) * n
    s[:2] = b"\\0\\0"
    for i in range(2, int(n ** .5) + 1):
        if s[i]: s[i * i::i] = bytes(len(range(i * i, n, i)))
    return sum(s)
def many(n): return len([0] * n)""",
        [call("sieve", 10**6, expected=78498), call("many", 3 * 10**7, expected=3 * 10**7)],
    ),
    "exceptions, contexts": (
        """
from contextlib import contextmanager, redirect_stdout
import io
class Bad(ValueError): pass
@contextmanager
def guard():
    try: yield
    except Bad as error: raise KeyError(*error.args)
def f(x):
    try:
        with guard(): raise Bad(x)
    except KeyError as error: return error.args
def g():
    out = io.StringIO()
    with redirect_stdout(out): print("hi")
    return out.getvalue()""",
        ["assert f(1) == (1,)", call("g", expected="hi\n")],
    ),
}

HONEST: dict[str, tuple[str, list[Any]]] = {
    **{f"reads by {name}": (program, SUM) for name, program in READERS.items()},
    **{name: (program, SUM) for name, program in SCRIPTS.items()},
    **FUNCTIONS,
}
