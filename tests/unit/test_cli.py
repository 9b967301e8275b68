import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ovi_studio import __version__
from ovi_studio.cli import generate, main
from ovi_studio.errors import MediaError, OutOfMemoryError
from ovi_studio.media import read_clip, read_metadata
from ovi_studio.ui.page import Settings
from ovi_studio.variants import get_variant
from tests.fakes import FakeEngine

PROMPT = "A dog barks. <S>Woof, I say!<E> Audio: barking"


class Studio:
    """The command line in an empty folder, with a fake engine behind it."""

    def __init__(self, capfd: pytest.CaptureFixture[str], **engine: Any) -> None:
        self._capfd = capfd
        self._engine = engine
        self.engines: list[FakeEngine] = []

    def __call__(self, *arguments: object) -> tuple[int, list[str], str]:
        """Exit code, lines on stdout, stderr."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generate, "make_engine", self._make_engine)
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as stop:  # argparse
                code = int(stop.code or 0)
        out, err = self._capfd.readouterr()
        return code, out.splitlines(), err

    def _make_engine(self, folder: Path, preferences: object = None) -> FakeEngine:
        self.engines.append(FakeEngine(folder, **self._engine))
        return self.engines[-1]

    @property
    def request(self) -> Any:
        return self.engines[-1].requests[-1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def studio(home: Path, capfd: pytest.CaptureFixture[str]) -> Studio:
    return Studio(capfd)


@pytest.fixture
def studio_with(home: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Studio]:
    return lambda **engine: Studio(capfd, **engine)


def save_image(path: Path, size: tuple[int, int] = (64, 48), colour: str = "red") -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


# --- A clip -----------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_clip(studio: Studio, home: Path) -> None:
    code, out, err = studio("generate", PROMPT, "-o", "dog.mp4")
    assert (code, out) == (0, ["dog.mp4"])
    assert ("untrained: expect noise" in err) is not get_variant("nano").trained
    assert read_clip("dog.mp4").num_frames == 3
    assert [path.name for path in home.iterdir()] == ["dog.mp4"]  # no temporary is left
    assert studio.engines[0].closed


def test_every_option_reaches_the_request(studio: Studio) -> None:
    image = save_image(Path("me.png"))
    options: dict[str, object] = {
        "--model": "960x960_5s", "--modality": "video", "--size": "704x1280", "--seed": 7, "--takes": 1,
        "--quality": "fast", "--steps": 12, "--solver": "euler", "--shift": 3.5, "--video-guidance-scale": 2,
        "--audio-guidance-scale": 1.5, "--slg-layer": 0, "--video-negative-prompt": "blur",
        "--audio-negative-prompt": "hiss", "--image": image, "-o": "a.mp4",
    }  # fmt: skip
    code, _, err = studio("generate", "A dog", *(part for pair in options.items() for part in pair))
    assert code == 0, err
    request = studio.request
    assert (request.variant, request.modality, request.size, request.seed) == ("960x960_5s", "video", (704, 1280), 7)
    assert (request.quality, request.num_inference_steps, request.solver) == ("fast", 12, "euler")
    assert (request.shift, request.video_guidance_scale, request.audio_guidance_scale) == (3.5, 2, 1.5)
    assert (request.slg_layer, request.video_negative_prompt, request.audio_negative_prompt) == (0, "blur", "hiss")
    assert (request.first_frame.name, request.first_frame.path) == ("me.png", str(image.absolute()))
    assert "untrained" not in err


@pytest.mark.parametrize(
    ("options", "frame"),
    [
        (["--draw-frame"], (None, 7)),
        (["--first-frame-seed", 3], (None, 3)),
        (["--draw-frame", "--first-frame-prompt", "A cat"], ("A cat", 7)),
        (["--first-frame-prompt", "A cat", "--first-frame-seed", 3], ("A cat", 3)),
    ],
)
def test_a_first_frame_to_draw(studio: Studio, options: list[object], frame: tuple[str | None, int]) -> None:
    code, _, err = studio("generate", "A dog", *options, "--seed", 7, "-o", "a.mp4")
    assert code == 0, err
    assert "draw frame" in err
    drawn = read_metadata("a.mp4")["request"]["first_frame"]
    assert (drawn["kind"], drawn["prompt"], drawn["seed"]) == ("generated", *frame)


def test_a_first_frame_cannot_be_given_and_drawn(studio: Studio) -> None:
    save_image(Path("me.png"))
    assert_refused(studio, "generate", "A dog", "--image", "me.png", "--draw-frame", "-o", "a.mp4")


def test_a_frame_alone(studio: Studio, home: Path) -> None:
    code, out, err = studio("frame", PROMPT, "--aspect", "16:9", "--seed", 4, "-o", "first.png")
    assert (code, out) == (0, ["first.png"]), err
    assert studio.engines[0].closed
    assert [path.name for path in home.iterdir()] == ["first.png"]
    with Image.open("first.png") as image:
        assert image.width > 1.5 * image.height
    assert studio("frame", "A dog", "-o", "first.png")[0] == 2
    assert studio("frame", "A cat", "-o", "first.png", "--force")[0] == 0
    assert studio("frame", PROMPT)[1] == ["a-dog-barks.png"]


def test_a_frame_as_json_lines(studio: Studio) -> None:
    code, out, _ = studio("frame", "A dog", "--seed", 4, "--json", "-o", "a.png")
    events = [json.loads(line) for line in out]
    assert code == 0
    assert (events[-2]["event"], events[-2]["seed"]) == ("frame drawn", 4)
    assert (events[-1]["event"], events[-1]["path"]) == ("finished", "a.png")


@pytest.mark.parametrize("name", ["a.jpg", "missing/a.png", "."])
def test_where_a_frame_cannot_go(studio: Studio, name: str) -> None:
    assert_refused(studio, "frame", "A dog", "-o", name)


def test_aspects_are_width_to_height(studio: Studio) -> None:
    studio("generate", "A dog", "--model", "960x960_5s", "--aspect", "9:16", "-o", "a.mp4")
    height, width = studio.request.clip_size()
    assert height > width
    assert (read_clip("a.mp4").height, read_clip("a.mp4").width) == (height, width)


def test_the_prompt_from_standard_input(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Ein Hündchen\n".encode())))
    assert studio("generate", "-", "-o", "a.mp4")[0] == 0
    assert studio.request.prompt == "Ein Hündchen"


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\xfe\x00", b"x" * (2 << 20)])
def test_bad_standard_input(studio: Studio, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert_refused(studio, "generate", "-", "-o", "a.mp4")


def test_takes_are_numbered_and_count_their_seeds(studio: Studio) -> None:
    code, out, _ = studio("generate", "A dog", "--takes", 3, "--seed", 10, "-o", "dog.mp4")
    assert (code, out) == (0, ["dog-1.mp4", "dog-2.mp4", "dog-3.mp4"])
    assert [read_metadata(path)["request"]["seed"] for path in out] == [10, 11, 12]
    assert len({Path(path).read_bytes() for path in out}) == 3
    assert len(studio.engines) == 1  # loaded once


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (PROMPT, "a-dog-barks.mp4"),
        ("../../etc/passwd: $HOME `rm` *?<>|\0\n", "etc-passwd-home-rm.mp4"),
        ("Ein Müßiggänger", "ein-muiggan"),
        ("犬が吠える", "clip.mp4"),
        ("<S>Only speech<E>", "clip.mp4"),
        ("CON", "clip-con.mp4"),
        ("word " * 100, "word-word"),
        ("x" * 300, "clip.mp4"),
    ],
)
def test_the_default_name_comes_from_the_prompt_and_never_collides(studio: Studio, prompt: str, name: str) -> None:
    first, second = studio("generate", prompt)[1], studio("generate", prompt)[1]
    assert first[0].startswith(name)
    assert len(first[0]) < 60
    assert first != second
    assert all(Path(path).is_file() for path in first + second)
    assert Path(first[0]).parent == Path()


def test_several_takes_without_a_name(studio: Studio) -> None:
    assert studio("generate", "A dog", "--takes", 2)[1] == ["a-dog-1.mp4", "a-dog-2.mp4"]
    assert studio("generate", "A dog", "--takes", 2)[1] == ["a-dog-2-1.mp4", "a-dog-2-2.mp4"]


# --- Events -----------------------------------------------------------------------------------------------


def test_json_lines(studio: Studio) -> None:
    code, out, err = studio("generate", "A dog", "-o", "a.mp4", "--takes", 2, "--json")
    events = [json.loads(line) for line in out]
    assert code == 0
    one_take = ["stage started"] * 2 + ["step done"] * 3 + ["stage started", "finished"]
    assert [event["event"] for event in events] == one_take * 2
    assert [event["take"] for event in events] == [1] * 7 + [2] * 7
    assert [event["path"] for event in events if event["event"] == "finished"] == ["a-1.mp4", "a-2.mp4"]
    assert events[2] == {
        "take": 1, "event": "step done", "step": 1, "steps": 3, "seconds_left": 2.0, "preview_bytes": 4,
        "sound_bytes": None,
    }  # fmt: skip
    assert ("untrained" in err) is not get_variant("nano").trained


def test_without_a_terminal_each_stage_is_a_line(studio: Studio) -> None:
    err = studio("generate", "A dog", "-o", "a.mp4")[2]
    assert [line for line in err.splitlines() if "untrained" not in line] == [
        "ovi-studio: load", "ovi-studio: denoise", "ovi-studio: mux"
    ]  # fmt: skip


def test_on_a_terminal_a_line_follows_the_run(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, out, err = studio("generate", "A dog", "-o", "a.mp4")
    assert (code, out) == (0, ["a.mp4"])
    assert "denoise [" + "#" * 8 + " " * 16 + "] 1/3, 0:02 left" in err
    assert "\r" in err
    assert err.endswith("\r")  # the line is wiped at the end


# --- What is refused --------------------------------------------------------------------------------------


def assert_refused(studio: Studio, *arguments: object, says: str = "") -> None:
    """One line on stderr, exit code 2, nothing written, no engine started."""
    before = sorted(Path().iterdir())
    code, out, err = studio(*arguments)
    assert code == 2, err
    assert out == []
    assert len(err.splitlines()) == 1, err
    assert err.startswith("ovi-studio: ")
    assert says in err
    assert sorted(Path().iterdir()) == before
    assert studio.engines == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["A dog", "--model", "giant"], "There is no model called 'giant'"),
        (["A dog", "--model", "nanoo"], "Did you mean 'nano'?"),
        (["A dog", "--image", "missing.png"], "missing.png"),
        (["A dog", "--image", "."], "not a file"),
        (["A dog", "--size", "0x0"], "0x0"),
        (["A dog", "--size=-96x96"], "-96x96"),
        (["A dog", "--size", "-96x96"], "--size"),
        (["A dog", "--size", "100000x100000"], "100000x100000"),
        (["A dog", "--size", "large"], "'large'"),
        (["A dog", "--size", "96x96", "--aspect", "1:1"], "Both size and aspect"),
        (["A dog", "--aspect", "1000:1"], "1000:1"),
        (["A dog", "--steps", "0"], "num_inference_steps cannot be 0"),
        (["A dog", "--steps", "10000"], "1 to 200"),
        (["A dog", "--steps", "many"], "--steps: invalid int value: 'many'"),
        (["A dog", "--seed", "-1"], "seed cannot be -1"),
        (["A dog", "--shift", "nan"], "shift cannot be nan"),
        (["A dog", "--takes", "0"], "takes cannot be 0"),
        (["A dog", "--solver", "heun"], "solver cannot be 'heun'"),
        (["A dog", "--slg-layer", "11"], "nano has 4 blocks"),
        ([""], "The prompt is empty"),
        ([" \n "], "The prompt is empty"),
        ([], "There is no prompt"),
        (["A dog says <S>woof"], "<S>"),
        (["A dog. <AUDCAP>barking"], "<AUDCAP>"),
        (["A dog", "-o", "clip.avi"], "does not end in .mp4"),
        (["A dog", "-o", ""], "does not end in .mp4"),
        (["A dog", "-o", "no/such/folder/a.mp4"], "There is no folder"),
        (["A dog", "-o", "n" * 300 + ".mp4"], "cannot be written"),
        (["A dog", "--from", "missing.mp4"], "missing.mp4"),
        (["A dog", "--frm", "x"], "unrecognized arguments"),
        (["A \udcff dog"], "prompt cannot be"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(studio: Studio, arguments: list[str], says: str) -> None:
    assert_refused(studio, "generate", *arguments, says=says)


def test_no_command_opens_the_page(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Settings] = []
    monkeypatch.setattr("ovi_studio.ui.page.serve", lambda settings, tell: served.append(settings))
    assert studio("--port", 7999)[0] == 0
    assert studio("page", "--share", "--no-browser")[0] == 0
    assert [(each.port, each.open_browser, each.access.share) for each in served] == [
        (7999, True, False),
        (None, False, True),
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("make",), "make"),
        (("page", "--host", "0.0.0.0"), "no password"),
        (("page", "--auth", "ann"), "name:password"),
        (("page", "--auth", "owner:x", "--share"), "account"),
        (("page", "--mcp", "--share"), "this machine only"),
        (("page", "--simulate", "nonsense"), "nonsense"),
        (("page", "--port", 99_999), "port"),
    ],
)
def test_pages_that_cannot_be(studio: Studio, arguments: tuple[object, ...], says: str) -> None:
    assert_refused(studio, *arguments, says=says)


def test_broken_and_huge_images(studio: Studio) -> None:
    Path("broken.png").write_bytes(save_image(Path("whole.png")).read_bytes()[:60])
    Path("text.png").write_text("not an image")
    save_image(Path("huge.png"), size=(20_000, 4))
    for name in ("broken.png", "text.png", "huge.png"):
        assert_refused(studio, "generate", "A dog", "--image", name, says=name)


def test_an_output_that_exists_is_kept_unless_forced(studio: Studio) -> None:
    Path("a.mp4").write_text("precious")
    assert_refused(studio, "generate", "A dog", "-o", "a.mp4", says="--force")
    assert Path("a.mp4").read_text() == "precious"
    assert studio("generate", "A dog", "-o", "a.mp4", "--force")[:2] == (0, ["a.mp4"])
    assert read_clip("a.mp4").num_frames == 3


def test_one_existing_take_is_enough_to_refuse(studio: Studio) -> None:
    Path("a-2.mp4").write_text("precious")
    assert_refused(studio, "generate", "A dog", "-o", "a.mp4", "--takes", 3, says="a-2.mp4")


def test_a_name_taken_during_the_run_is_not_overwritten(studio_with: Callable[..., Studio]) -> None:
    studio = studio_with(before_finish=lambda: Path("a.mp4").write_text("precious"))
    code, out, _ = studio("generate", "A dog", "-o", "a.mp4")
    assert (code, out) == (0, ["a-2.mp4"])
    assert Path("a.mp4").read_text() == "precious"
    assert read_clip("a-2.mp4").num_frames == 3


def test_an_output_folder_is_no_file(studio: Studio) -> None:
    Path("a.mp4").mkdir()
    assert_refused(studio, "generate", "A dog", "-o", "a.mp4", "--force", says="folder")


@pytest.mark.skipif(os.name != "posix", reason="a link beside the path")
def test_force_writes_where_a_link_points(studio: Studio) -> None:
    Path("elsewhere").mkdir()
    Path("elsewhere/real.mp4").write_text("old")
    Path("link.mp4").symlink_to("elsewhere/real.mp4")
    assert studio("generate", "A dog", "-o", "link.mp4", "--force")[:2] == (0, ["link.mp4"])
    assert Path("link.mp4").is_symlink()
    assert read_clip("elsewhere/real.mp4").num_frames == 3
    assert [path.name for path in Path("elsewhere").iterdir()] == ["real.mp4"]


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_failed_run(studio_with: Callable[..., Studio], home: Path, json_lines: bool) -> None:
    for error in (
        OutOfMemoryError("The card has too little memory.", "Take a smaller size."),
        MediaError("The disk that should hold it is full.", "Free some space."),
    ):
        studio = studio_with(error=error)
        code, out, err = studio("generate", "A dog", "-o", "a.mp4", *["--json"] * json_lines)
        assert code == error.exit_code
        assert err.splitlines()[-1] == f"ovi-studio: {error}"
        assert list(home.iterdir()) == []
        assert studio.engines[0].closed
        if json_lines:
            assert json.loads(out[-1])["event"] == "failed"


def test_an_engine_that_raises(studio_with: Callable[..., Studio], home: Path) -> None:
    def full() -> None:
        raise MediaError("The disk that should hold a.mp4 is full.", "Free some space.")

    code, _, err = studio_with(before_finish=full)("generate", "A dog", "-o", "a.mp4")
    assert code == 2
    assert err.splitlines()[-1] == "ovi-studio: The disk that should hold a.mp4 is full. Free some space."
    assert list(home.iterdir()) == []


# --- The same clip again ----------------------------------------------------------------------------------


def test_from_makes_the_identical_clip(studio: Studio) -> None:
    studio("generate", PROMPT, "--aspect", "3:2", "--steps", 7, "-o", "a.mp4")
    code, out, _ = studio("generate", "--from", "a.mp4", "-o", "b.mp4")
    assert (code, out) == (0, ["b.mp4"])
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    assert read_metadata("b.mp4") == read_metadata("a.mp4")


def test_options_override_what_the_clip_says(studio: Studio) -> None:
    studio("generate", "A dog", "--size", "96x96", "--seed", 3, "--steps", 7, "-o", "a.mp4")
    studio("generate", "A cat", "--from", "a.mp4", "--seed", 4, "--aspect", "2:1", "-o", "b.mp4")
    request = studio.request
    assert (request.prompt, request.seed, request.num_inference_steps) == ("A cat", 4, 7)
    assert (request.size, request.aspect) == (None, "2:1")
    studio("generate", "--from", "a.mp4", "--size", "100x60", "-o", "c.mp4")
    assert studio.request.clip_size() != (100, 60)  # snapped
    code, _, err = studio("generate", "--from", "a.mp4", "--model", "720x720_5s", "--aspect", "1:1", "-o", "d.mp4")
    assert code == 0, err
    assert studio.request.clip_size() == (704, 704)


def test_from_a_clip_with_an_image_wants_that_image_again(studio: Studio) -> None:
    image = save_image(Path("me.png"))
    studio("generate", "A dog", "--image", image, "-o", "a.mp4")
    code, _, err = studio("generate", "--from", "a.mp4", "-o", "b.mp4")
    assert code == 2
    assert "'me.png'" in err
    assert "--image" in err

    moved = image.rename("moved.png")
    code, _, err = studio("generate", "--from", "a.mp4", "--image", moved, "-o", "b.mp4")
    assert code == 0
    assert "differ" not in err

    other = save_image(Path("other.png"), colour="blue")
    code, _, err = studio("generate", "--from", "a.mp4", "--image", other, "-o", "c.mp4")
    assert code == 0
    assert "the clip will differ" in err


def test_the_sound_alone_of_a_clip_with_an_image(studio: Studio) -> None:
    save_image(Path("first.png"))
    assert studio("generate", PROMPT, "--image", "first.png", "-o", "a.mp4")[0] == 0
    assert studio("generate", "--from", "a.mp4", "--modality", "audio", "-o", "b.mp4")[0] == 0
    assert studio.request.first_frame is None


def test_another_model_brings_its_own_defaults(studio: Studio) -> None:
    assert studio("generate", PROMPT, "--model", "720x720_5s", "--shift", "3", "-o", "a.mp4")[0] == 0
    assert studio("generate", "--from", "a.mp4", "--model", "nano", "-o", "b.mp4")[0] == 0
    assert (studio.request.num_inference_steps, studio.request.slg_layer, studio.request.shift) == (None, None, 3)


@pytest.mark.skipif(os.name != "posix", reason="closed descriptors")
def test_closed_streams(home: Path) -> None:
    program = f"{shlex.quote(sys.executable)} -m ovi_studio.cli"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    closed = {"lint - <&-": 2, "lint 'A dog.' >&-": 0}
    for arguments, code in closed.items():
        done = subprocess.run(
            f"{program} {arguments}", shell=True, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


def test_from_what_is_no_clip_of_ours(studio: Studio) -> None:
    Path("text.mp4").write_text("not a clip")
    assert_refused(studio, "generate", "--from", "text.mp4", says="text.mp4")


# --- lint -------------------------------------------------------------------------------------------------


def test_a_good_prompt_has_no_findings(studio: Studio) -> None:
    assert studio("lint", "A dog barks. <S>Woof<E> Audio: a dog barking") == (0, [], "")
    assert studio("lint", "A dog. <AUDCAP>barking<ENDAUDCAP>", "--model", "720x720_5s") == (0, [], "")


def test_an_error_is_shown_with_its_place(studio: Studio) -> None:
    code, out, err = studio("lint", "A scene.\nA 犬 says <S>woof")
    assert (code, err) == (1, "")
    assert out[0].startswith("2:10: error: ")
    assert out[0].endswith("[unclosed-tag]")
    assert out[1] == "    A 犬 says <S>woof"
    assert out[2].startswith(" " * 4 + " " * 10 + "^^^")  # the dog is two columns wide


def test_a_fault_far_into_a_long_line_is_shown_in_its_surroundings(studio: Studio) -> None:
    prompt = "word " * 200 + "<S>woof"
    _, out, _ = studio("lint", prompt)
    assert out[0].startswith("1:1001: error")
    assert len(out[1]) < 130
    assert out[1][out[2].index("^") :].startswith("<S>")


def test_warnings_alone_are_no_failure(studio: Studio) -> None:
    code, out, _ = studio("lint", "A dog. <AUDCAP>barking<ENDAUDCAP>", "--model", "960x960_5s")
    assert code == 0
    assert "warning" in out[0]


def test_lint_as_json(studio: Studio) -> None:
    code, out, _ = studio("lint", "A dog says <S>woof", "--json")
    report = json.loads("\n".join(out))
    assert code == 1
    assert report["prompt"] == "A dog says <S>woof"
    (found,) = report["findings"]
    assert (found["code"], found["severity"], found["line"], found["column"]) == ("unclosed-tag", "error", 1, 12)
    assert report["prompt"][found["start"] : found["end"]].startswith("<S>")
    assert {"start", "end", "replacement"} == set(found["edits"][0])


def test_fix_prints_the_repaired_prompt(studio: Studio) -> None:
    code, out, err = studio("lint", "A dog says <S>woof", "--fix")
    assert (code, err) == (0, "")
    assert out == ["A dog says <S>woof<E>"]
    assert studio("lint", out[0]) == (0, [], "")


def test_fix_tells_what_it_cannot_mend(studio: Studio) -> None:
    code, out, err = studio("lint", "<S>" + "many words " * 60 + "<E>", "--fix")
    assert code == 0
    assert out[0].startswith("<S>many words")
    assert "[too-many-words]" in err


def test_lint_reads_standard_input(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"A dog says <S>woof")))
    assert studio("lint", "-")[0] == 1


def test_lint_refuses_what_it_does_not_know(studio: Studio) -> None:
    assert_refused(studio, "lint", "A dog", "--model", "giant", says="'giant'")
    assert studio("lint", "")[0] == 1


def test_generate_mentions_remarks_and_goes_on(studio: Studio) -> None:
    code, _, err = studio("generate", 'A man says "Come here at once, my dear."', "-o", "a.mp4")
    assert code == 0
    assert "remarks on the prompt: 1" in err
    # The engine writes captions in the dialect that the model knows: nothing to remark.
    assert "remarks" not in studio("generate", "A dog. <AUDCAP>barking<ENDAUDCAP>", "-o", "b.mp4")[2]


# --- Processes --------------------------------------------------------------------------------------------


def run(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def children_seconds() -> float:
    """Processor time of finished children: what they would take on a machine that does nothing else."""
    times = os.times()
    return times.children_user + times.children_system


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["generate", "--help"], ["lint", "--help"]])
def test_help_imports_nothing_heavy_and_answers_at_once(arguments: list[str]) -> None:
    code = (
        "import atexit, sys; from ovi_studio.cli import main\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'av', 'gradio', 'PIL', 'diffusers', 'transformers'}\n"
        "atexit.register(lambda: print('HEAVY', heavy & set(sys.modules)))\n"
        "main(sys.argv[1:])"
    )
    seconds = []
    for _ in range(3):
        start = children_seconds()
        done = run(code, *arguments)
        seconds.append(children_seconds() - start)
        assert done.returncode == 0
        assert "HEAVY set()" in done.stdout
    assert min(seconds) < 0.5
    assert (__version__ if arguments == ["--version"] else "usage: ovi-studio") in done.stdout


SLOW_RUN = """
import sys
from ovi_studio.cli import generate, main
from tests.fakes import FakeEngine
generate.make_engine = lambda folder, _: FakeEngine(folder, steps=1000, step_seconds={seconds})
sys.exit(main(sys.argv[1:]))
"""


def start_slow_run(home: Path, seconds: float) -> "subprocess.Popen[str]":
    """A run in its own process, which has finished its first step."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", SLOW_RUN.format(seconds=seconds), "generate", "A dog", "-o", "a.mp4", "--json"],
        cwd=home, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if '"denoise"' in line:
            return process
    raise AssertionError(process.communicate()[1])


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_cancels_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = start_slow_run(tmp_path, seconds=0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert json.loads(out.splitlines()[-1])["event"] == "cancelled"
    assert err.splitlines()[-1] == "ovi-studio: cancelled"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    process = start_slow_run(tmp_path, seconds=60)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # within a long step
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == -signal.SIGINT
    assert not (tmp_path / "a.mp4").exists()


@pytest.mark.skipif(os.name != "posix", reason="a pipe that closes")
def test_a_reader_that_leaves(tmp_path: Path) -> None:
    process = start_slow_run(tmp_path, seconds=0.01)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert process.wait(timeout=10) == 1
    assert list(tmp_path.iterdir()) == []
