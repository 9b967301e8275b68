"""The page's endpoints as tools for language models."""

import asyncio
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

    with running_page(Settings(mcp=True), FakeEngine) as served:
        names, fields, answer = asyncio.run(use(served.address))
    assert names == ["generate", "status", "cancel", "plan", "library"]
    assert fields[:2] == ["prompt", "variant"]  # who asks is no field
    assert "queued" in answer
