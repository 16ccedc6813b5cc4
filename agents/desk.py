"""A customer-service desk: a router, specialists and a senior specialist, under one supervisor.

The router finds the topic of each letter, if necessary with the model, and passes the letter to the specialist for that
topic. A letter that a specialist may not answer goes to the senior, before the senior's other work.
"""

import asyncio
from typing import Any

from llmosd import Child, Context, Message, agent

TOPICS = {
    "billing": ("invoice", "bill", "charge", "charged", "refund", "paid", "price"),
    "technical": ("error", "crash", "broken", "install", "update", "slow", "password"),
    "general": (),
}
BEYOND_A_SPECIALIST = ("lawyer", "court", "complaint", "manager")
URGENT = 10


@agent(summary="A customer-service desk: routes letters to specialists, and escalates.")
async def desk(ctx: Context, letters: list[str], max_tokens: int = 40) -> list[dict[str, str]]:
    """Opens a desk, sends it `letters`, and returns topic, author and text of each answer."""
    office = f"desk {ctx.pid}"
    shared = {"office": office, "max_tokens": max_tokens}
    staff = [Child("specialist", shared | {"role": role}, name=f"{office} {role}") for role in ("senior", *TOPICS)]
    router = Child("router", shared, name=f"{office} router")
    ctx.start_thread(ctx.supervise([*staff, router], strategy="one_for_one"), name="supervisor")
    await ctx.event(f"{office} is open").wait(timeout=60)
    return await asyncio.gather(*(ctx.call(f"{office} router", letter) for letter in letters))


@agent(summary="The router of a customer-service desk.")
async def router(ctx: Context, office: str, max_tokens: int) -> None:
    """Finds the topic of each letter, and has a specialist answer it. Handles many letters at the same time."""

    async def handle(letter: Message) -> None:
        topic = await _topic(ctx, letter.body)
        answer = await ctx.call(f"{office} {topic}", letter.body)
        if answer["escalate"]:
            answer = await ctx.call(f"{office} senior", letter.body, priority=URGENT)
        await ctx.reply(letter, {"topic": topic, "by": answer["by"], "answer": answer["text"]})

    await ctx.event(f"{office} is open").set()
    while True:
        ctx.start_thread(handle(await ctx.receive()))


@agent(summary="A specialist, or the senior, of a customer-service desk.")
async def specialist(ctx: Context, office: str, role: str, max_tokens: int) -> None:
    """Answers letters one after another. All specialists but the senior escalate delicate letters."""
    instruction = f"You answer letters of customers about {role} questions, politely, in two sentences."
    while True:
        letter = await ctx.receive()
        if role != "senior" and _words(letter.body) & set(BEYOND_A_SPECIALIST):
            await ctx.reply(letter, {"escalate": True})
            continue
        text = await ctx.chat(
            [{"role": "system", "content": instruction}, {"role": "user", "content": letter.body}],
            max_tokens=max_tokens,
            emit=False,
        )
        await ctx.reply(letter, {"escalate": False, "by": role, "text": text})


async def _topic(ctx: Context, letter: str) -> str:
    """The topic of a letter. If no word of the letter is a sign of a topic, the model is asked."""
    words = _words(letter)
    for topic, signs in TOPICS.items():
        if words & set(signs):
            return topic
    question = f"Is this letter about billing, technical or general questions? Answer with that word.\n\n{letter}"
    answer: Any = await ctx.chat([{"role": "user", "content": question}], max_tokens=4, emit=False)
    named = _words(answer)
    return next((topic for topic in TOPICS if topic in named), "general")


def _words(text: str) -> set[str]:
    return {word.strip(".,;:!?\"'()") for word in text.lower().split()}
