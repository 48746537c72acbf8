"""Follows a page: runs the commands of its console blocks in order and compares what they print.

``python -m tests.docs.transcript`` does so with this environment's own installation and writes the output into
docs/tutorial.md anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.docs.pages import DOCS

TUTORIAL = DOCS / "tutorial.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LEFT_OUT = "..."
WIDTH = "100"  # columns of tables
MASKS = (
    (r"\S*/(?=pointadapterx/)", ""),  # where it is installed
    (
        r"(?<=\.ply): .* %; novelty [\d.]+( \(unfamiliar\))?$|(?<=\.ply,run),.*|(?<=\.ply) \w+ [\d.]+$"
        r"|(?<=input 0) \w+ [\d.]+",
        "",
    ),  # answers: see the test
    (r"precision (bf16|fp32)|point ops: .*", ""),  # what the machine has
    (r"[━─]+", "━"),  # as wide as what stands below
    (r"[-+]?\d+([.,:]\d+)*(e[-+]\d+)?", "0"),
    (r" +", " "),
)


def masked(line: str) -> str:
    """What is the same on every machine."""
    for pattern, replacement in MASKS:
        line = re.sub(pattern, replacement, line)
    return line.strip()


def aligned(expected: list[str], printed: list[str]) -> list[str]:
    """Lines as they were printed, in the places of ``expected``, where ``...`` stands for any number of lines.

    Raises:
        AssertionError: if a line was not printed there.
    """
    found: list[str] = []
    place, skips = 0, False
    for line in expected:
        if line == LEFT_OUT:
            found.append(line)
            skips = True
            continue
        while skips and place < len(printed) and masked(printed[place]) != masked(line):
            place += 1
        assert place < len(printed), f"{line!r} was not printed: {printed}"
        assert masked(printed[place]) == masked(line), f"{line!r} is expected, {printed[place]!r} was printed"
        found.append(printed[place])
        place, skips = place + 1, False
    assert skips or not any(printed[place:]), f"also printed: {printed[place:]}"
    return found


def follow(text: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Runs a page's console blocks in ``folder``; a Python block whose first line is ``# name.py`` is saved there.

    Returns:
        The page, with the output of this run.

    Raises:
        AssertionError: if a command fails or prints something else.
    """

    def block(match: re.Match[str]) -> str:
        language, content = match[1], match[2]
        if language == "python":
            name = re.match(r"# (\w+\.py)\n", content)
            assert name is not None, f"a Python block without a file's name: {content}"
            (folder / name[1]).write_text(content, encoding="utf-8")
            return match[0]
        return f"```console\n{''.join(_run(content, folder, environment))}```"

    return BLOCK.sub(block, text)


def _run(content: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    for part in re.split(r"^(?=\$ )", content, flags=re.MULTILINE)[1:]:
        command, *expected = part.splitlines()
        done = subprocess.run(
            ["bash", "-c", command.removeprefix("$ ")],
            cwd=folder,
            env={**os.environ, **environment, "COLUMNS": WIDTH},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            check=False,
        )
        printed = [line.rstrip() for line in done.stdout.splitlines()]
        assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{done.stdout}"
        yield f"{command}\n"
        yield from (f"{line}\n" for line in aligned(expected, printed))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        TUTORIAL.write_text(follow(TUTORIAL.read_text(encoding="utf-8"), Path(empty), {}), encoding="utf-8")
