"""Prints one line: calls per second of `send_message` between a client and an agent of autogen-core.

Run by the message bench, in an environment of its own where that package is installed.
"""

import asyncio
from dataclasses import dataclass
from time import perf_counter

from autogen_core import AgentId, MessageContext, RoutedAgent, SingleThreadedAgentRuntime, message_handler

COUNT = 3000


@dataclass
class Ask:
    number: int


class Answerer(RoutedAgent):
    def __init__(self) -> None:
        super().__init__("answers")

    @message_handler
    async def answer(self, message: Ask, ctx: MessageContext) -> Ask:
        return message


async def main() -> None:
    runtime = SingleThreadedAgentRuntime()
    await Answerer.register(runtime, "answerer", Answerer)
    runtime.start()
    to = AgentId("answerer", "one")
    await runtime.send_message(Ask(0), to)
    start = perf_counter()
    for number in range(COUNT):
        await runtime.send_message(Ask(number), to)
    print(COUNT / (perf_counter() - start))
    await runtime.stop()


asyncio.run(main())
