"""Printed text, records of logging, and failures of agents, as `llmos` and the log of a real daemon show them."""

from __future__ import annotations

import json
import re

import pytest

AGENTS = """
import asyncio, logging, sys
from llmosd import agent, tool

print("while it is loaded")

@tool
def chatty(count: int) -> int:
    for number in range(count):
        print("tool", number)
    return count

@agent
async def talker(ctx):
    print("to standard output")
    print("to standard error", file=sys.stderr)
    logging.getLogger("library").warning("a record")
    await asyncio.to_thread(print, "from a thread")
    await ctx.tool("chatty", count=2)
    print("\\x1b]0;title\\x07 half \\ud83d", end="")
    return "the result"

@agent
async def broken(ctx):
    print("before the end")
    raise ValueError("no luck")

@agent
async def unlucky(ctx):
    await ctx.wait(999999)

@agent
async def grouped(ctx):
    async with asyncio.TaskGroup() as group:
        group.create_task(broken(ctx))

@agent
async def half(ctx):
    return "\\ud83d"

@agent
async def endless(ctx):
    while True:
        print("again")
"""


@pytest.fixture
def daemon(launch):
    return launch()


def test_a_task_that_prints_shows_its_lines_on_standard_error_and_its_result_alone_on_standard_output(daemon):
    out = daemon.llmos("run", "talker")
    assert out.stdout == "the result\n"
    shown = [re.sub(r"^[\d:]{8} \[\d+\] ", "", line) for line in out.stderr.splitlines()]
    assert shown == [
        "stdout: to standard output",
        "stderr: to standard error",
        "warning: a record logger='library'",
        "stdout: from a thread",
        "stdout: tool 0",
        "stdout: tool 1",
        "stdout: \\x1b]0;title\\x07 half \\ud83d",
    ]


def test_each_printed_line_in_the_log_of_the_daemon_names_its_process_or_its_file(daemon, agents):
    daemon.llmos("run", "talker")
    rows = [json.loads(line) for line in daemon.log.splitlines() if line.endswith("}")]
    assert [row for row in rows if row.get("output") and not (row.get("pid") or row.get("file"))] == []
    programs = {row["event"]: row.get("program") for row in rows if "output" in row or "logger" in row}
    assert programs["to standard output"] == programs["a record"] == programs["tool 1"] == "talker"
    assert {row["file"] for row in rows if row["event"] == "while it is loaded"} == {str(agents / "some.py")}


FAILURES = {
    "broken": r"AgentFailed: some\.py:\d+: broken: ValueError: no luck",
    "unlucky": r"UnknownProcess: some\.py:\d+: process 999999 never existed.*",
    "grouped": r"AgentFailed: some\.py:\d+: grouped: ExceptionGroup: .*: some\.py:\d+: ValueError: no luck",
    "half": r"NotEncodable: some\.py:\d+: the result of half: .*surrogates not allowed",
}


def test_a_failure_is_one_line_with_its_place_and_the_name_of_its_report(daemon):
    for program, line in FAILURES.items():
        failed = daemon.llmos("run", program)
        *_, last, hint = failed.stderr.splitlines()
        assert re.fullmatch(f"llmos: {line}", last)
        named = re.fullmatch(r"llmos: see `llmos crashes (\d+)` for the whole report", hint)
        assert named is not None
        assert "Traceback" not in failed.stderr
        report = daemon.llmos("crashes", named[1])
        assert report.returncode == 0
        assert "some.py" in report.stdout
        assert f"in {program}" in report.stdout


def test_crashes_of_a_process_without_a_report_is_an_error(daemon):
    for pid in ("999999", "0"):
        unknown = daemon.llmos("crashes", pid)
        assert (unknown.returncode, unknown.stdout) == (2, "")
        assert f"process {pid} never existed" in unknown.stderr
    pid = json.loads(daemon.llmos("run", "echo", "x", "--json").stdout)["pid"]
    well = daemon.llmos("crashes", str(pid))
    assert well.returncode == 2
    assert f"no crash report of process {pid} (echo): it ended well" in well.stderr


def test_an_agent_that_prints_forever_is_interrupted_and_the_daemon_goes_on(daemon):
    out = daemon.llmos("run", "endless")
    assert "BurstExceeded" in out.stderr
    assert daemon.llmos("ping").returncode == 0
    assert daemon.log.count('"again"') < 3_000
