"""Rewrite to a theme: the speeches are replaced by a language model of the user's, and looked at before they are taken.

The endpoint is the user's own. Its key is sent to it and kept nowhere; address and model are kept in the browser.
"""

import html
from typing import Any, TypeAlias

import gradio as gr

from ovi_studio.chat import Endpoint
from ovi_studio.prompt import Dialect
from ovi_studio.rewrite import Rewrite, apply_answer, ask, instruction
from ovi_studio.ui.door import Visits
from ovi_studio.ui.handling import on
from ovi_studio.variants import get_variant

_LOCAL = "http://localhost:11434/v1"  # where Ollama answers
Text: TypeAlias = str | None  # of a field; None where nothing was ever written
_MARKS = {"same": "span", "removed": "del", "added": "ins"}


class Rewriting:
    """Make it where it shall stand, inside of `gr.Blocks`.

    Args:
        visits: who asks; only the owner may have this machine speak to other servers.
    """

    def __init__(self, visits: Visits) -> None:
        self._visits = visits
        self._proposal = gr.State("")
        self._kept = gr.BrowserState([_LOCAL, ""], storage_key="ovi-studio-endpoint", secret="endpoint")  # noqa: S106
        with gr.Accordion("Rewrite the speeches to a theme", open=False):
            self._theme = gr.Textbox(label="Theme", placeholder="a heist that goes wrong politely", max_lines=2)
            with gr.Tabs():
                with gr.Tab("By a language model"):
                    with gr.Row():
                        self._address = gr.Textbox(_LOCAL, label="Address of any OpenAI-compatible server", scale=2)
                        self._model = gr.Textbox(label="Model", placeholder="as the server calls it")
                        self._key = gr.Textbox(label="Key", type="password", placeholder="if it wants one")
                    self._ask = gr.Button("Rewrite", size="sm")
                with gr.Tab("By any chat"):
                    self._show = gr.Button("Write the instruction", size="sm")
                    self._instruction = gr.Textbox(label="Copy this to the chat", lines=4, max_lines=10)
                    self._copy = gr.Button("Copy it", size="sm")
                    self._answer = gr.Textbox(label="Paste its answer here", lines=2, max_lines=6)
                    self._read = gr.Button("Read the answer", size="sm")
            self._difference = gr.HTML(visible=False)
            with gr.Row(visible=False) as self._decision:
                self._take = gr.Button("Take it", variant="primary", size="sm")
                self._drop = gr.Button("Leave it", size="sm")

    def wire(self, page: gr.Blocks, prompt: gr.HTML, variant: gr.HTML) -> None:
        """Listen to what happens here."""
        endpoint = [self._address, self._model]
        shown = [self._difference, self._decision, self._proposal]
        on(page.load, _recalled, self._kept, endpoint)
        on(self._ask.click, self._asked, [prompt, variant, self._theme, *endpoint, self._key], shown)
        on(self._ask.click, lambda *kept: [*kept], endpoint, self._kept)
        on(self._show.click, _instructed, [prompt, variant, self._theme], self._instruction)
        self._copy.click(None, self._instruction, js="(text) => { navigator.clipboard?.writeText(text); }")
        on(self._read.click, _answered, [prompt, variant, self._answer], shown)
        on(self._take.click, lambda proposal: (proposal, *_closed()), self._proposal, [prompt, *shown])
        on(self._drop.click, _closed, None, shown)

    def _asked(
        self, prompt: Text, variant: str, theme: Text, address: Text, model: Text, key: Text, request: gr.Request
    ) -> tuple[Any, ...]:
        self._visits.of(request).check_owner()
        made, endpoint = get_variant(variant), Endpoint(address or "", model or "", key or None)
        return _proposed(
            ask(endpoint, prompt or "", theme or "", dialect=Dialect(made.caption_dialect), seconds=made.duration)
        )


def _recalled(kept: Any) -> tuple[Any, Any]:
    """The endpoint as the browser kept it, if it did."""
    match kept:
        case [str(address), str(model)]:
            return address, model
    return _LOCAL, ""


def _instructed(prompt: Text, variant: str, theme: Text) -> str:
    return instruction(prompt or "", theme or "", get_variant(variant).duration)


def _answered(prompt: Text, variant: str, answer: Text) -> tuple[Any, ...]:
    made = get_variant(variant)
    return _proposed(
        apply_answer(prompt or "", answer or "", dialect=Dialect(made.caption_dialect), seconds=made.duration)
    )


def _proposed(rewrite: Rewrite) -> tuple[Any, ...]:
    """The difference as markup in which all that is not ours is escaped, and what the linter says of it."""
    words = "".join(f"<{_MARKS[kind]}>{html.escape(text)}</{_MARKS[kind]}>" for kind, text in rewrite.diff)
    remarks = "".join(f"<li>{html.escape(finding.message)}</li>" for finding in rewrite.findings)
    shown = f'<div class="ovi-diff">{words}</div>' + (f"<ul>{remarks}</ul>" if remarks else "")
    return gr.update(value=shown, visible=True), gr.update(visible=True), rewrite.after


def _closed() -> tuple[Any, ...]:
    return gr.update(visible=False), gr.update(visible=False), ""
