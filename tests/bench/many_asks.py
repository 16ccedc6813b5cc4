"""Sixty-four `ask` tasks at once through the daemon, beside the same through transformers `generate` one by one.

Needs the embedded model. Run by `make bench`; the peer runs after the daemon has ended, so each has the machine.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmosd import AsyncClient, NoDaemon
from llmosd.daemon.settings import load

TASKS = 64
MAX_TOKENS = 32
THINGS = ("France", "rain", "a dragon", "Hamlet", "the ocean", "bread", "the moon", "a violin")
QUESTIONS = ("What is {}?", "Tell me about {}.", "Write one sentence on {}.", "Why is {} interesting?") * 2
PROMPTS = [question.format(thing) for question in QUESTIONS for thing in THINGS]


async def through_the_daemon(socket: Path) -> tuple[int, float]:
    """Generated tokens, and seconds from the first submission to the last answer."""
    async with AsyncClient(socket) as llmos:
        await llmos.run("ask", {"question": "Say hello.", "max_tokens": 4})
        before = (await llmos.slots())[0].tokens
        start = time.perf_counter()
        tasks = [await llmos.submit("ask", {"question": prompt, "max_tokens": MAX_TOKENS}) for prompt in PROMPTS]
        texts = await asyncio.gather(*(task.result() for task in tasks))
        seconds = time.perf_counter() - start
        assert len(texts) == TASKS
        assert all(texts)
        return (await llmos.slots())[0].tokens - before, seconds


def one_after_another() -> tuple[int, float]:
    """The same by the plain library, with its own cache and greedy decoding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = next(path.parent for path in (load().cache_path / "models").rglob("config.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    made, start = 0, time.perf_counter()
    for prompt in PROMPTS:
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False, return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False, attention_mask=torch.ones_like(ids))
        made += out.shape[1] - ids.shape[1]
    return made, time.perf_counter() - start


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="llmosd-bench-") as name:
        socket = Path(name) / "llmosd.sock"
        command = [Path(sys.executable).parent / "llmosd", "--socket", socket, "--state", name]
        daemon = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_for(socket)
            ours = asyncio.run(through_the_daemon(socket))
        finally:
            daemon.terminate()
            daemon.wait()
    theirs = one_after_another()
    table = Table(title=f"{TASKS} asks, at most {MAX_TOKENS} tokens each, embedded model, {os.cpu_count()} cores")
    for column in ("", "tokens", "seconds", "tokens/s"):
        table.add_column(column, justify="right")
    for side, (tokens, seconds) in (("llmosd, all at once", ours), ("transformers generate, one by one", theirs)):
        table.add_row(side, str(tokens), f"{seconds:.1f}", f"{tokens / seconds:.1f}")
    table.add_row("ratio", "", "", f"{ours[0] / ours[1] / (theirs[0] / theirs[1]):.2f}")
    Console(width=100).print(table)


def wait_for(socket: Path) -> None:
    async def try_once() -> None:
        async with AsyncClient(socket):
            pass

    for _ in range(500):
        try:
            return asyncio.run(try_once())
        except NoDaemon:
            time.sleep(0.02)
    raise SystemExit("the daemon did not start")


if __name__ == "__main__":
    main()
