"""How the page looks: one accent, quiet greys, a colour for speech and one for sound. Fonts are the system's own."""

import gradio as gr

from ovi_studio.assets import data_path

_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """The theme: gradio's plainest, in our colours."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.indigo,
        secondary_hue=gr.themes.colors.indigo,
        neutral_hue=gr.themes.colors.zinc,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        text_size=gr.themes.sizes.text_md,
        font=_FONT,
        font_mono=_MONO,
    ).set(
        body_background_fill="#f6f6f8",
        body_background_fill_dark="#121216",
        body_text_color="#1c1c22",
        body_text_color_dark="#ececf1",
        body_text_color_subdued="#5c5c68",
        body_text_color_subdued_dark="#a3a3b0",
        color_accent="#4f46e5",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_text_color="#5c5c68",
        block_label_text_color_dark="#a3a3b0",
        block_title_text_color="#1c1c22",
        block_title_text_color_dark="#ececf1",
        block_title_text_size="13px",
        block_title_text_weight="600",
        **_inputs(),
        **_buttons(),
    )


def _inputs() -> dict[str, str]:
    """Fields and choices: paper with a thin line."""
    return {
        "input_background_fill": "#ffffff",
        "input_background_fill_dark": "#1b1b21",
        "input_border_width": "1px",
        "input_border_color": "#d7d7de",
        "input_border_color_dark": "#3a3a44",
        "input_placeholder_color": "#6b6b76",
        "input_placeholder_color_dark": "#9191a0",
        "input_radius": "9px",
        "checkbox_label_background_fill": "#ffffff",
        "checkbox_label_background_fill_dark": "#1b1b21",
        "checkbox_label_background_fill_selected": "#e9e8fd",
        "checkbox_label_background_fill_selected_dark": "#2a2850",
        "checkbox_label_border_width": "1px",
        "checkbox_label_border_color": "#d7d7de",
        "checkbox_label_border_color_dark": "#3a3a44",
        "checkbox_label_padding": "7px 12px",
        "checkbox_background_color_selected": "#4f46e5",
        "checkbox_background_color_selected_dark": "#6d67f2",
        "slider_color": "#4f46e5",
    }


def _buttons() -> dict[str, str]:
    """One that is meant to be pressed, and quiet ones."""
    return {
        "button_border_width": "1px",
        "button_small_radius": "8px",
        "button_small_padding": "6px 12px",
        "button_small_text_size": "13px",
        "button_small_text_weight": "500",
        "button_primary_background_fill": "#4f46e5",
        "button_primary_background_fill_hover": "#4338ca",
        "button_primary_background_fill_dark": "#5b55ec",
        "button_primary_background_fill_hover_dark": "#4f46e5",
        "button_primary_border_color": "transparent",
        "button_primary_border_color_dark": "transparent",
        "button_primary_text_color": "#ffffff",
        "button_secondary_background_fill": "#ffffff",
        "button_secondary_background_fill_hover": "#f1f1fd",
        "button_secondary_background_fill_dark": "#1b1b21",
        "button_secondary_background_fill_hover_dark": "#26262f",
        "button_secondary_border_color": "#d7d7de",
        "button_secondary_border_color_dark": "#3a3a44",
        "button_secondary_text_color": "#1c1c22",
        "button_secondary_text_color_dark": "#ececf1",
    }


def styles() -> str:
    """The style sheets: the common one, then those of single tabs."""
    sheets = sorted(data_path("assets", "ui").glob("*.css"), key=lambda sheet: (sheet.stem != "style", sheet.name))
    return "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
