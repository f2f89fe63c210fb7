"""LangGraph with its SQLite saver: threads that wait in `interrupt`, resumed by `Command(resume=…)`."""

from __future__ import annotations

import asyncio
import sys
from typing import TypedDict

from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from timing import Resumes, payload, timed, told


class State(TypedDict):
    """A flow."""

    number: int
    reply: dict[str, object]


async def main(count: int, paced: int) -> None:
    """Measure."""
    resumes = Resumes()

    async def waits(_: State) -> dict[str, object]:
        """Wait for the reply."""
        return {"reply": interrupt("reply")}

    graph = StateGraph(State)
    graph.add_node("waits", waits)
    graph.add_edge(START, "waits")
    graph.add_edge("waits", END)
    async with AsyncSqliteSaver.from_conn_string("langgraph.sqlite") as saver:
        await saver.conn.execute("PRAGMA synchronous = FULL")
        flow = graph.compile(checkpointer=saver)

        async def park(number: int) -> None:
            await flow.ainvoke({"number": number, "reply": {}}, {"configurable": {"thread_id": str(number)}})

        async def resume(number: int) -> None:
            await flow.ainvoke(Command(resume=payload(number)), {"configurable": {"thread_id": str(number)}})
            resumes.heard(number)  # returns when the last checkpoint is stored

        told(await timed(resumes, park, resume, count=count, paced=paced, rate=50))


asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
