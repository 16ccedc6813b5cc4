"""Agent files and the modules beside them on a real daemon: own agents, changed helpers, restarts, equal names."""

from __future__ import annotations

import json

import pytest

from tests.support.program_files import HEADER, write

SHOP = """
from helper import PRICE

@agent
async def price(ctx: Context) -> int:
    return PRICE

@agent
async def both(ctx: Context) -> list:
    pids = [await ctx.spawn(price), await ctx.spawn("price")]
    return [await ctx.wait(pid) for pid in pids]

@agent(durable=True)
async def patient(ctx: Context) -> list:
    first = await ctx.wait(await ctx.spawn(price))
    await ctx.reply(await ctx.receive(), first)
    message = await ctx.receive()
    return [first, await ctx.wait(await ctx.spawn("price")), message.body]
"""


@pytest.fixture
def shops(folder):
    """Two folders, each with a shop that has the same agents and a helper of its own."""
    for number, name in enumerate(("first", "second"), 1):
        write(folder / name / "helper.py", f"PRICE = {number}\n")
        write(folder / name / "shop.py", HEADER + SHOP)
    return [folder / "first", folder / "second"]


@pytest.fixture
def launch(start, shops):
    """Starts daemons with the agents of both folders."""
    return lambda: start(*(flag for shop in shops for flag in ("--agents", str(shop))))


def test_agents_import_their_own_helper_and_spawn_the_agents_of_their_own_file(launch, shops, folder):
    daemon = launch()
    assert daemon.llmos("run", "both").stdout == "[2,2]\n"
    assert daemon.llmos("run", f"{shops[0]}/shop.py:both").stdout == "[1,1]\n"
    alone = write(folder / "elsewhere" / "alone.py", HEADER + SHOP)
    write(folder / "elsewhere" / "helper.py", "PRICE = 3\n")
    assert daemon.llmos("run", f"{alone}:both").stdout == "[3,3]\n"
    write(shops[1] / "helper.py", "PRICE = 22\n", when=2)
    assert daemon.llmos("run", "both").stdout == "[22,22]\n"


def test_an_error_in_a_helper_names_its_file_and_line(launch, shops):
    daemon = launch()
    write(shops[1] / "helper.py", "\nPRICE = 1 / 0\n", when=2)
    failed = daemon.llmos("run", f"{shops[1]}/shop.py:both")
    assert (failed.returncode, f'"{shops[1]}/helper.py", line 2' in failed.stderr) == (1, True)
    write(shops[1] / "helper.py", "PRICE = 4\n", when=3)
    assert daemon.llmos("run", "both").stdout == "[4,4]\n"


def test_programs_with_one_name_are_listed_with_a_warning_and_the_way_to_run_each(launch, shops):
    daemon = launch()
    listed = daemon.llmos("programs", "--json")
    rows = [row for row in json.loads(listed.stdout) if row["name"] == "price"]
    first, second = (f"{shop}/shop.py" for shop in shops)
    assert [(row["source"], row["warning"]) for row in rows] == [
        (second, ""),
        (first, f"{second}:price has the same name and hides it; run it as {first}:price"),
    ]
    assert f"llmos: warning: program price of {first}: {second}:price has the same name" in listed.stderr
    assert daemon.llmos("run", f"{first}:price").stdout == "1\n"
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    warnings = [line for line in lines if line["level"] == "warning" and line.get("name") == "price"]
    assert [(line["runs"], line["hidden"]) for line in warnings] == [(f"{second}:price", [f"{first}:price"])]


@pytest.mark.parametrize("price", [1, 11])
def test_a_durable_agent_continues_after_a_restart_with_the_agents_of_its_own_file(launch, shops, price):
    daemon = launch()
    with daemon.client() as client:
        task = client.submit(f"{shops[0]}/shop.py:patient", detach=True, name="patient").id
        assert client.call("patient", "a question", timeout=60) == 1
    daemon.kill()
    if price != 1:
        write(shops[0] / "helper.py", f"PRICE = {price}\n", when=2)
    daemon = launch()
    with daemon.client() as client:
        client.send("patient", "hello")
        assert client.attach(task).result(timeout=60) == [1, price, "hello"]
    assert ("the code of a durable agent has changed" in daemon.log) == (price != 1)
