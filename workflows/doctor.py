"""Tell what works on this machine, and what to install for what does not (`make doctor`).

Every check runs in a process of its own (`doctor_checks.py`) with a time limit, and this module
imports nothing but the standard library, so a package that is missing, hangs or crashes the
interpreter spoils only its own line of the table. Nothing is fetched from a network.

    python -m workflows.doctor
    python -m workflows.doctor --json

The exit code is 0 when the core works and 3 when a part of it does not. What an optional part
lacks is reported and is no error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from workflows.doctor_checks import CHECKS, Check, Finding

REPOSITORY = Path(__file__).resolve().parents[1]

SUMMARY = "Tell what works on this machine, and what to install for what does not."

AT_ONCE = 2
"""How many checks run at the same time; most of their time goes into loading packages."""

GRACE_SECONDS = 5.0
"""Time between asking a check to end and killing it, in which torchrun can end its ranks."""

_running: list[subprocess.Popen[str]] = []

COLOURS = {"ok": "32", "missing": "33", "broken": "31"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks, print what they found and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workflows.doctor", description=SUMMARY)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    as_json = parser.parse_args(arguments).json
    found = run_checks()
    works = all(f.state == "ok" for check, f in zip(CHECKS, found, strict=True) if check.core)
    if as_json:
        checks = [
            {"check": check.name, "core": check.core} | vars(finding)
            for check, finding in zip(CHECKS, found, strict=True)
        ]
        print(json.dumps({"core_works": works, "checks": checks}))
    else:
        print(table(found))
        print("the core works" if works else "the core does not work: see the lines above")
    return 0 if works else 3


def run_checks() -> list[Finding]:
    """Return all findings in the order of the checks; when interrupted, leave none running."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(run_check, check) for check in CHECKS]
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in _running.copy():
                _end(process)
            raise


def run_check(check: Check) -> Finding:
    """Run one check in a process of its own; a finding comes back however that process ends."""
    command = [sys.executable, "-m", "workflows.doctor_checks", check.name]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _running.append(process)
    try:
        out, err = process.communicate(timeout=check.seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        return Finding("broken", f"no answer within {check.seconds:.0f} s", check.fix)
    finally:
        _running.remove(process)
    try:
        return Finding(**json.loads(out.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = (err.strip().splitlines() or [""])[-1]
        ended = f"ended with {process.returncode}" + (f": {last}" if last else "")
        return Finding("broken", ended, check.fix)


def table(found: Sequence[Finding]) -> str:
    """Format the findings as lines: state, name, what was found, and below it what to do."""
    width = max(len(check.name) for check in CHECKS)
    indent = width + 13
    columns = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120) - indent)
    lines: list[str] = []
    for core, title in ((True, "core"), (False, "optional")):
        lines.append(title)
        for check, finding in zip(CHECKS, found, strict=True):
            if check.core == core:
                state = _coloured(f"{finding.state:<7}", finding.state)
                texts = [finding.found]
                if finding.state != "ok" and finding.fix:
                    texts.append(f"-> {finding.fix}")
                wrapped = [line for text in texts for line in textwrap.wrap(text, columns)]
                lines.append(f"  {state}  {check.name:<{width}}  {wrapped[0]}")
                lines += [" " * indent + line for line in wrapped[1:]]
        lines.append("")
    return "\n".join(lines)


def _coloured(text: str, state: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{COLOURS[state]}m{text}\x1b[0m"


def _end(process: subprocess.Popen[str]) -> None:
    """End a check and the processes that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.communicate(timeout=GRACE_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
