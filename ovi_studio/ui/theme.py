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
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_weight="600",
        input_background_fill="#ffffff",
        input_background_fill_dark="#1b1b21",
        input_border_color="#d7d7de",
        input_border_color_dark="#34343d",
        button_primary_background_fill="#4f46e5",
        button_primary_background_fill_hover="#4338ca",
        button_primary_background_fill_dark="#5b55ec",
        button_primary_background_fill_hover_dark="#6d67f2",
        button_primary_text_color="#ffffff",
        slider_color="#4f46e5",
    )


def styles() -> str:
    """The style sheets: the common one, then those of single tabs."""
    sheets = sorted(data_path("assets", "ui").glob("*.css"), key=lambda sheet: (sheet.stem != "style", sheet.name))
    return "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)
