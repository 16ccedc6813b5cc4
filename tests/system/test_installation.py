"""An installation from the wheel, without any extra: it runs agents, and names the extra that a model needs."""

from __future__ import annotations

import os
import subprocess
import sys
import venv

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The scripts folder of an environment with the base installation alone."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=True)
    scripts = folder / "bin"
    pip = [scripts / "python", "-m", "pip", "install", "--quiet", str(ROOT)]
    subprocess.run(pip, check=True, cwd=folder, stdin=subprocess.DEVNULL)
    return scripts


def run(scripts, socket, *arguments):
    environment = os.environ | {"LLMOSD_SOCKET": str(socket)}
    return subprocess.run(
        [scripts / "llmos", *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


def test_the_base_installation_needs_no_torch_and_names_the_extra(scripts, folder, eventually):
    socket = folder / "llmosd.sock"
    command = [scripts / "llmosd", "--socket", socket, "--state", folder, "--model", "simulated"]
    daemon = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: run(scripts, socket, "ping").returncode == 0, "the daemon answers")
        assert run(scripts, socket, "run", "echo", "installed").stdout == "installed\n"
        assert run(scripts, socket, "run", "ask", "q", "-a", "max_tokens=3").stdout.count("s") == 3
        refused = run(scripts, socket, "run", "ask", "q", "-a", "model=smollm2")
        assert refused.returncode == 1
        assert "MissingExtra" in refused.stderr
        assert "pip install 'llmosd[local]'" in refused.stderr
        assert "pip install 'llmosd[top]'" in run(scripts, socket, "top").stderr
    finally:
        daemon.terminate()
        assert daemon.wait(60) == 0


def test_programs_and_settings_are_shipped_inside_the_package(scripts):
    code = """
from llmosd.daemon.settings import shared
from llmosd.simulator.experiment import SHIPPED_TRACES
print(*sorted(shared('agents').glob('*.py')), shared('config'), *SHIPPED_TRACES.glob('*.csv.gz'))
"""
    out = subprocess.run(
        [scripts / "python", "-P", "-c", code], capture_output=True, text=True, check=True, cwd=scripts
    ).stdout
    for name in ("agents/ask.py", "agents/echo.py", "agents/generate.py", "agents/summarize.py", "config"):
        assert f"llmosd/share/{name}" in out
    for name in ("conv", "code"):
        assert f"llmosd/share/config/traces/azure_llm_2023_{name}.csv.gz" in out
    assert sys.prefix not in out


USER = """
from llmosd import Client, Context, Token, agent


class City:
    pass


@agent(summary="Asks.")
async def asks(ctx: Context, question: str) -> str:
    number: str = ctx.pid
    reply: int = await ctx.generate(question, full=True, schema=City)
    text: int = await ctx.generate(question, max_tokens=9, choices=["yes", "no"])
    city: City = await ctx.generate(question, schema=City)
    answer: str = await ctx.wait(await ctx.spawn("ask", {"question": question}))
    return answer


with Client() as llmos:
    for event in llmos.submit("ask", {"question": "?"}).events():
        if isinstance(event, Token):
            print(event.text)
"""


def test_the_types_are_shipped_and_checked_in_the_code_of_users(scripts, tmp_path):
    packages = next((scripts.parent / "lib").glob("python*/site-packages"))
    assert all((packages / name / "py.typed").is_file() for name in ("ipc", "kernel", "llmosd"))
    (tmp_path / "user.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", scripts / "python", "user.py"]
    out = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120).stdout
    assert out.count("error:") == 3, out
    assert "user.py:11: error: Incompatible types in assignment" in out
    assert 'user.py:12: error: Incompatible types in assignment (expression has type "Completion"' in out
    assert 'user.py:13: error: Incompatible types in assignment (expression has type "str"' in out
