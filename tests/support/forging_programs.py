"""Programs that try to pass without knowing the answer."""

from __future__ import annotations

FORGERIES = {
    "leaves at once": "os._exit(0)",
    "leaves politely": "sys.exit(0)",
    "leaves from a call": "def answer(n=7): os._exit(0)",
    "raises SystemExit from a call": "def answer(n=7): raise SystemExit(0)",
    "raises something odd": """
class Odd(BaseException):
    def __str__(self): raise Odd
def answer(n=7): raise Odd
""",
    "equal to everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = lambda self: 4815162342
answer = lambda n=7: Any()
""",
    "integer that lies": """
class Lie(int):
    for name in ("eq", "int", "index", "hash", "bool", "repr", "str", "format"):
        locals()[f"__{name}__"] = lambda self, *rest: 4815162342
answer = lambda n=7: Lie(3)
""",
    "class that lies": """
class Lie:
    __class__ = int
    __index__ = lambda self: 4815162342
answer = lambda n=7: Lie()
""",
    "metaclass that lies": """
class Meta(type):
    __instancecheck__ = __subclasscheck__ = __eq__ = lambda *_: True
    __hash__ = type.__hash__
class Lie(metaclass=Meta): pass
answer = lambda n=7: Lie
""",
    "text instead of a number": "answer = lambda n=7: '4815162342 '.strip()\nprint('4815162342.0')",
    "several answers": """
print(*range(4815162340, 4815162350), sep="\\n")
answer = lambda n=7: list(range(4815162340, 4815162350))
""",
    "all results at once": """
for fd in range(64):
    for n in range(2000): quietly(os.write, fd, b'["int","%x"]\\n' % n)
""",
    "odd results": """
odd = [b"true", b"null", b"[]", b"{}", b"[" * 99999, b'["int"]', b'["int",null]', b'["any"]', b"",
       b'["int","nan"]', b'["object"]', b'["float","nan"]', b'["list",[1]]', b"NaN", b"\\xff"]
for line in odd: quietly(os.write, 3, line + b"\\n")
""",
    "patched modules": """
import json, marshal, builtins
json.dumps = marshal.dumps = builtins.repr = builtins.hex = lambda *_, **__: '["int","true"]'
builtins.isinstance = builtins.all = builtins.any = lambda *_: True
os.write_really, os.write = os.write, lambda fd, data: os.write_really(fd, b"true\\n")
""",
    "patched harness": """
def lie(*_): return "true"
for value in gc.get_objects():
    if callable(value) and quietly(getattr, value, "__name__") in ("encode", "_find", "run_calls"):
        quietly(setattr, value, "__code__", lie.__code__)
    if isinstance(value, dict) and "TOO_MUCH" in value: value.update(RAISED="true", TOO_MUCH="true")
""",
    "closed descriptors": "for fd in range(256): quietly(os.close, fd)",
    "last words": """
import atexit
atexit.register(lambda: os.write(1, b"4815162342\\n"[:-2] + b"\\n"))
class Last:
    def __del__(self): os.write(1, b"true\\n")
last = Last()
""",
    "endless generator": "def answer(n=7):\n    while True: yield 4815162342",
    "endless list": """
class Endless(list):
    __iter__ = lambda self: iter(int, 1)
    __len__ = lambda self: 1
answer = lambda n=7: Endless([1])
""",
    "list within itself": "def answer(n=7):\n    a = []; a.append(a); return a",
    "deep result": """
def answer(n=7):
    value = 4815162342
    for _ in range(10 ** 5): value = [value]
    return value
""",
    "large result": "answer = lambda n=7: [4815162342] * 10 ** 6",
    "own json, own site": """
for name in ("json", "sitecustomize", "encodings", "os"):
    open(f"/tmp/program/{name}.py", "w").write("print(4815162342)")
""",
    "syntax error": "print(4815162342",
    "zero bytes": "\0",
}
