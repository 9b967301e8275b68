"""For everybody: keyboard, names for readers, contrast, narrow screens; in each state of the Create tab."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.engines import ShownEngine
from tests.browser.visitor import Visitor, serving, visiting

pytestmark = pytest.mark.browser

FOLDED = ("Examples and presets", "Rewrite the speeches", "First frame", "Advanced")

# Texts whose colour differs too little from what is behind them: [ratio, text, colour, background].
PALE = """
() => {
    const parse = (css) => {
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
        canvas.fillStyle = css;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3])).concat(1);
    const behind = (element) => {
        const layers = [];
        for (let each = element; each; each = each.parentElement) {
            layers.push(parse(getComputedStyle(each).backgroundColor));
        }
        return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
    };
    const light = (colour) => {
        const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = colour.map((c) => linear(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => {
        const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
        return (high + 0.05) / (low + 0.05);
    };
    const opacity = (element) => (element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1);
    const pale = [];
    const check = (element, css, text) => {
        const ground = behind(element);
        const ink = parse(css);
        const seen = ratio(over([...ink.slice(0, 3), ink[3] * opacity(element)], ground), ground);
        if (seen < 4.5) pale.push([seen.toFixed(2), text.trim().slice(0, 40), css, ground.slice(0, 3).join()]);
    };
    const visible = (element) => element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })
        && element.getBoundingClientRect().width > 0 && !element.closest(':disabled, [aria-hidden=true]:not(.ovi-ink)');
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node; (node = walker.nextNode()); ) {
        const element = node.parentElement;
        const unseen = /^(SCRIPT|STYLE|TEXTAREA|OPTION|NOSCRIPT)$/.test(element.tagName);
        if (!node.data.trim() || unseen || !visible(element)) continue;
        check(element, getComputedStyle(element).color, node.data);
    }
    for (const field of document.querySelectorAll('input, textarea')) {
        if (!visible(field) || /checkbox|radio|range|file/.test(field.type)) continue;
        const style = getComputedStyle(field);
        if (field.placeholder) check(field, getComputedStyle(field, '::placeholder').color, field.placeholder);
        if (style.color !== 'rgba(0, 0, 0, 0)') check(field, style.color, field.value || 'a value');
    }
    return pale;
}
"""

# What can be reached by the keyboard, or is meant to be clicked, and has no name.
NAMELESS = """
() => [...document.querySelectorAll('button, a[href], input, textarea, select, [tabindex="0"], video[controls]')]
    .filter((each) => each.checkVisibility({ checkVisibilityCSS: true }) && each.type !== 'file')
    .filter((each) => {
        const label = [...(each.labels || [])].map((label) => label.textContent).join('');
        const ids = (each.getAttribute('aria-labelledby') || '').split(' ');
        const named = ids.map((id) => document.getElementById(id)?.textContent || '');
        const own = each.matches('input, textarea, select') ? '' : each.textContent;
        return ![each.getAttribute('aria-label'), label, ...named, own, each.title].join('').trim();
    })
    .map((each) => each.outerHTML.slice(0, 160))
"""


LONG = 600  # steps: nobody waits for their end


@pytest.fixture(scope="module")
def engines() -> list[ShownEngine]:
    """The engine of the page, once there is one."""
    return []


@pytest.fixture(scope="module")
def address(engines: list[ShownEngine], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    def make(folder: Path) -> ShownEngine:
        engines.append(ShownEngine(folder, steps=3, step_seconds=0.1))
        return engines[-1]

    with serving(tmp_path_factory.mktemp("studio"), make_engine=make) as address:
        yield address


@pytest.fixture
def engine(address: str, engines: list[ShownEngine]) -> Iterator[ShownEngine]:
    yield engines[-1]
    engines[-1].steps = 3


def states(visitor: Visitor, engine: ShownEngine) -> Iterator[str]:
    """Through the states of the tab, one after the other."""
    yield "as it opens"
    visitor.write('A man says "hello" and <S>one two three four five six seven eight nine ten. Audio: a hum')
    expect(visitor.page.locator(".ovi-mend").first).to_be_visible()
    for part in FOLDED:
        visitor.unfold(part)
    yield "written, all unfolded"
    visitor.write("A man says <S>hello<E>. Audio: a hum")
    visitor.button("Script").click()
    expect(visitor.page.locator(".ovi-script fieldset")).to_have_count(1)
    visitor.page.locator(".ovi-outlook summary").click()
    yield "script"
    visitor.page.locator(".ovi-outlook summary").click()
    visitor.field("Takes").fill("2")
    visitor.field("Takes").blur()
    engine.steps = LONG
    visitor.generate()
    expect(visitor.live.locator(".ovi-hear")).to_be_visible()
    yield "running"
    engine.steps = 3  # of the second take
    visitor.button("Keep what there is").click()
    visitor.wait_for_clip()
    expect(visitor.recent()).not_to_have_count(0)
    yield "result"
    boxes = visitor.page.locator(".ovi-strip input")
    boxes.nth(0).check()
    boxes.nth(1).check()
    expect(visitor.page.locator(".ovi-compare")).to_be_visible()
    yield "compare"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_and_names(browser: Browser, address: str, engine: ShownEngine, theme: str) -> None:
    with visiting(browser) as visit:
        visitor = visit(f"{address}?__theme={theme}")
        visitor.page.add_style_tag(content="* { transition: none !important; animation: none !important; }")
        for state in states(visitor, engine):
            assert visitor.page.evaluate(PALE) == [], state
            assert visitor.page.evaluate(NAMELESS) == [], state


def test_narrow(browser: Browser, address: str, engine: ShownEngine) -> None:
    with visiting(browser) as visit:
        visitor = visit(address, viewport={"width": 390, "height": 844})
        for state in states(visitor, engine):
            wide = visitor.page.evaluate(
                "() => [...document.querySelectorAll('body *')].filter((each) => each.checkVisibility()"
                " && each.getBoundingClientRect().right > 391 && !each.closest('.ovi-strip ul, .overflow-menu'))"
                ".map((each) => each.outerHTML.slice(0, 120))"
            )
            assert visitor.page.evaluate("document.scrollingElement.scrollWidth") <= 390, (state, wide)
            if state == "running":  # it stands below all settings
                top = visitor.page.locator(".ovi-stage").evaluate("(stage) => stage.getBoundingClientRect().top")
                assert top < 400, top


def focused(page: Page) -> str:
    """What has the focus, as a person would call it."""
    return str(
        page.evaluate(
            "() => { const it = document.activeElement; return it === document.body ? '' :"
            " (it.getAttribute('aria-label') || it.labels?.[0]?.textContent || it.textContent || it.title).trim(); }"
        )
    )


def test_keyboard(browser: Browser, address: str, engine: ShownEngine) -> None:
    with visiting(browser) as visit:
        visitor = visit(address)
        visitor.unfold("Advanced")
        page = visitor.page
        page.mouse.click(5, 5)
        passed = []
        for _ in range(90):
            page.keyboard.press("Tab")
            passed.append(focused(page).lstrip("▣♪▢◰⚄ "))
        wanted = [
            "Text", "Script", "Speech", "Sound caption", "Prompt", "Examples and presets", "First frame", "nano",
            "Picture and sound", "Automatic", "Seed", "Roll", "Keep it", "Takes", "Advanced", "Steps", "Solver",
            "Shift", "Picture guidance", "Not to be seen", "Own size", "auto", "Generate",
        ]  # fmt: skip
        places = [next((i for i, name in enumerate(passed) if name.startswith(each)), -1) for each in wanted]
        assert -1 not in places, (wanted[places.index(-1)], passed)
        assert places == sorted(places), list(zip(wanted, places, strict=True))

        for name in ("Seed", "Not to be seen"):
            visitor.field(name).focus()
            expect(visitor.field(name)).to_have_css("outline-style", "solid")

        visitor.tile("nano").focus()
        page.keyboard.press("ArrowDown")
        expect(visitor.tile("720×720, 5 s")).to_be_checked()
        expect(visitor.tile("Automatic 992 × 512")).to_be_checked()  # the tiles of the new model
        assert focused(page).startswith("720×720")
        page.keyboard.press("ArrowUp")
        expect(visitor.tile("nano")).to_be_checked()

        visitor.write("By hand.")
        engine.steps = LONG
        visitor.prompt.press("Control+Enter")
        expect(visitor.live).to_be_visible()
        assert focused(page) == "Prompt"
        visitor.button("Keep what there is").click()
        visitor.wait_for_clip()
        show = page.get_by_role("button", name="Show By hand.")
        show.focus()
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        assert focused(page).startswith("Show By hand.")
