"""Map-reduce over documents: one mapper for each document asks the model about it, and the answers are counted.

All mappers run at the same time; a mapper that waits for a slot costs nearly nothing. The failure of a
mapper is reported, and does not stop the others. The counts are in a shared region, which the mappers change by
compare-and-set, so they need not know each other.
"""

import asyncio
from typing import Any

from llmosd import Context, LlmosError, agent

QUESTION = "What is this text about? Answer with one word."


@agent(summary="Map-reduce: asks the model about each document, and tallies the answers.")
async def mapreduce(
    ctx: Context, documents: list[str], question: str = QUESTION, max_tokens: int = 4, width: int = 400
) -> dict[str, Any]:
    """Asks `question` about each of `documents`, cut to `width` characters. Returns answers, tally and failures."""
    region = f"tally {ctx.pid}"
    await ctx.shared(region, ephemeral=True).set({})
    pids = [
        await ctx.spawn(
            "mapper", {"region": region, "question": question, "text": text[:width], "max_tokens": max_tokens}
        )
        for text in documents
    ]
    results = await asyncio.gather(*(ctx.wait(pid) for pid in pids), return_exceptions=True)
    failures = [str(result) for result in results if isinstance(result, LlmosError)]
    tally = (await ctx.shared(region).get()).value
    return {
        "answers": [result for result in results if isinstance(result, str)],
        "tally": dict(sorted(tally.items(), key=lambda entry: (-entry[1], entry[0]))),
        "failures": failures,
    }


@agent(summary="Asks the model about one document, for a map-reduce.")
async def mapper(ctx: Context, region: str, question: str, text: str, max_tokens: int) -> str:
    """Returns the model's answer, and counts its first word in `region`."""
    messages = [{"role": "user", "content": f"{question}\n\n{text}"}]
    answer = await ctx.chat(messages, max_tokens=max_tokens, temperature=0.0, emit=False)
    word = (answer.split() or [""])[0].strip(".,;:!?\"'*").lower()
    await ctx.shared(region).update(lambda tally: tally | {word: tally.get(word, 0) + 1})
    return answer
