"""The choice of adapters (LoRA): which ones, how strong, and on which tower."""

from collections.abc import Sequence
from typing import Any, get_args

import gradio as gr

from ovi_studio.request import Adapter
from ovi_studio.ui.handling import on
from ovi_studio.variants import Modality

Row = list[Any]  # id, strength, tower


class AdapterChoice:
    """Make it where it shall stand, inside of `gr.Blocks`.

    Args:
        installed: ids to choose from.
    """

    def __init__(self, installed: list[str]) -> None:
        towers = ", ".join(get_args(Modality))
        self.choice = gr.Dropdown(
            installed, value=[], multiselect=True, label="Adapters", visible=bool(installed),
            info="LoRA files that `ovi-studio models import` has taken in",
        )  # fmt: skip
        self.table = gr.Dataframe(
            [], headers=["Adapter", "Strength", f"Tower ({towers})"], datatype=["str", "number", "str"], type="array",
            column_count=3, static_columns=[0], label="How they are put on", visible=False, interactive=True,
        )  # fmt: skip

    def wire(self) -> None:
        """Listen to the choice."""
        on(self.choice.change, _rows, [self.choice, self.table], self.table)


def _rows(chosen: list[str], rows: list[Row]) -> Any:
    """A row for every adapter that is chosen; those that were there keep their numbers."""
    known = {str(row[0]): row for row in rows if row}
    return gr.update(value=[known.get(name, [name, 1.0, "both"]) for name in chosen], visible=bool(chosen))


def shown_adapters(choice: gr.Dropdown, table: gr.Dataframe, adapters: Sequence[Adapter]) -> dict[Any, Any]:
    """Updates that show these adapters; those that are not installed can be seen, and taken away."""
    ids = [each.id for each in adapters]
    offered = list(dict.fromkeys([*(value for _, value in choice.choices), *ids]))
    rows = [[each.id, each.strength, each.tower] for each in adapters]
    return {
        choice: gr.update(value=ids, choices=offered, visible=bool(offered)),
        table: gr.update(value=rows, visible=bool(rows)),
    }
