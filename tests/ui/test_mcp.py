"""The page's endpoints as tools for language models."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from ovi_studio.ui.page import Settings, running_page
from tests.fakes import FakeEngine


def test_the_endpoints_are_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVI_STUDIO_HOME", str(tmp_path))

    async def use(address: str) -> tuple[list[str], list[str], str]:
        async with (
            streamablehttp_client(f"{address}gradio_api/mcp/") as (reading, writing, _),
            ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            made = await session.call_tool("generate", {"prompt": "A red face."})
            return [tool.name for tool in tools], list(tools[0].inputSchema["properties"]), str(made.content)

    # in a thread of its own: a browser test before this one leaves an event loop running in the main thread
    with running_page(Settings(mcp=True), FakeEngine) as served, ThreadPoolExecutor(1) as thread:
        names, fields, answer = thread.submit(lambda: asyncio.run(use(served.address))).result()
    assert names == ["generate", "status", "cancel", "plan", "library"]
    assert fields[:2] == ["prompt", "variant"]  # who asks is no field
    assert "queued" in answer
