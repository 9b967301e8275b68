"""Messages of the page."""

import gradio as gr
import pytest

from ovi_studio.errors import MediaError
from ovi_studio.ui.handling import told, without_folders


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("There is no folder /home/ann/clips.", "There is no folder clips."),
        ("'/srv/a/b/first.png' is broken.", "'first.png' is broken."),
        (r"C:\Users\ann\clip.mp4 is gone.", "clip.mp4 is gone."),
        ("Give 16:9, 704x1280 and/or 1/2.", "Give 16:9, 704x1280 and/or 1/2."),
        ("See https://huggingface.co/chetwinlow1/Ovi first.", "See https://huggingface.co/chetwinlow1/Ovi first."),
        ("/tmp alone, and a / b", "/tmp alone, and a / b"),
    ],
)
def test_files_go_by_their_names(text: str, shown: str) -> None:
    assert without_folders(text) == shown


def test_our_errors_become_messages_in_which_markup_is_text() -> None:
    def fail() -> None:
        raise MediaError("/data/x/<img src=x onerror=alert(1)> is broken.", "Choose another.")

    with pytest.raises(gr.Error) as raised:
        told(fail)()
    assert "<" not in raised.value.message
    assert "/data" not in raised.value.message
    with pytest.raises(ZeroDivisionError):
        told(lambda: 1 / 0)()
