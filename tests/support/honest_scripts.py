"""Ordinary programs, as models write them, that read numbers and print their sum."""

from __future__ import annotations

READERS = {
    "input()": """
n, total = int(input()), 0
while n > 0:
    row = [int(x) for x in input().split()]
    total += sum(row); n -= len(row)
print(total)""",
    "input with prompts": """
n, total = int(input("How many? ")), 0
while n > 0:
    row = [int(x) for x in input("Next line: ").split()]
    total += sum(row); n -= len(row)
print(total)""",
    "sys.stdin": "import sys\nn, *rest = sys.stdin.read().split()\nprint(sum(map(int, rest)))",
    "lines of sys.stdin": """
import sys
next(sys.stdin)
print(sum(int(x) for line in sys.stdin for x in line.split()))""",
    "readline": """
import sys
input = sys.stdin.readline
n, total = int(input()), 0
while line := input(): total += sum(map(int, line.split()))
print(total)""",
    "sys.stdin.buffer": """
import sys
data = sys.stdin.buffer.read().split()
print(sum(map(int, data[1:])))""",
    "open(0)": "data = open(0).read().split()\nprint(sum(map(int, data[1:])))",
    "os.read": """
import os
data = os.read(0, 1 << 16).split()
os.write(1, b"%d" % sum(map(int, data[1:])))""",
    "/dev/stdin": "data = open('/dev/stdin').read().split()\nprint(sum(map(int, data[1:])))",
    "fileinput": """
import fileinput
data = " ".join(fileinput.input()).split()
print(sum(map(int, data[1:])))""",
    "until EOFError": """
input(); total = 0
try:
    while True: total += sum(map(int, input().split()))
except EOFError: print(total)""",
    "mmap": """
import mmap
data = mmap.mmap(0, 0, access=mmap.ACCESS_READ)[:].split()
print(sum(map(int, data[1:])))""",
    "fast output": """
import io, os, sys
data = io.BytesIO(os.read(0, os.fstat(0).st_size)).read().split()
sys.stdout.write(str(sum(map(int, data[1:]))) + "\\n")
sys.stdout.flush()
os._exit(0)""",
}

SCRIPTS = {
    "main guard": """
def main():
    print(sum(map(int, open(0).read().split()[1:])))
if __name__ == "__main__":
    main()""",
    "sys.exit(main())": """
import sys
def main() -> int:
    print(sum(map(int, sys.stdin.read().split()[1:])))
    return 0
sys.exit(main())""",
    "exit()": "print(sum(map(int, open(0).read().split()[1:])))\nexit()",
    "big stack": """
import sys, threading
sys.setrecursionlimit(10 ** 6)
threading.stack_size(128 * 1024 * 1024)
def add(v): return v[0] + add(v[1:]) if v else 0
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
def main(): print(add(list(map(int, open(0).read().split()[1:]))) + deep(10 ** 5) - 10 ** 5)
thread = threading.Thread(target=main); thread.start(); thread.join()""",
    "asyncio": """
import asyncio
async def later(v):
    await asyncio.sleep(0.001)
    return v
async def main():
    values = map(int, open(0).read().split()[1:])
    done = await asyncio.gather(*map(later, values), asyncio.to_thread(sum, []))
    print(sum(done))
asyncio.run(main())""",
    "argparse, logging": """
import argparse, logging
logging.basicConfig(level="INFO")
parser = argparse.ArgumentParser()
parser.add_argument("--skip", type=int, default=1)
options = parser.parse_args()
logging.info("reading")
print(sum(map(int, open(0).read().split()[options.skip:])))""",
    "pickled class": """
import pickle
class Sum:
    def __init__(self, v): self.v = v
s = pickle.loads(pickle.dumps(Sum(open(0).read().split()[1:])))
print(sum(map(int, s.v)))""",
    "trailing white space": "print(sum(map(int, open(0).read().split()[1:])), end='  \\n\\n')",
}
