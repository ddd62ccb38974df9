"""The report's page in a real browser: what its script adds, that it asks for nothing, and that it is whole without it."""

import csv
import io
import json
import re
from xml.etree import ElementTree

import pytest

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def page(browser, written):
    """The page of a run, open; at the end nobody has complained, and nothing but the page was asked for."""
    browser.open(written)
    yield browser
    told, asked = browser.complaints()
    assert told == []
    assert {url for url in asked if not url.startswith("blob:")} == {written.as_uri()}


def column(page, key, selector=".leaderboard tbody tr:not([hidden])"):
    """The texts of a column of the leaderboard, as it stands."""
    place = f"[...document.querySelectorAll('.leaderboard th')].findIndex(one => one.dataset.column === '{key}')"
    return page.value(f"[...document.querySelectorAll('{selector}')].map(row => row.cells[{place}].textContent.trim())")


def names(page, kind=".on"):
    """The estimators of what is lit in the figures."""
    return set(page.value(f"[...document.querySelectorAll('figure g{kind}')].map(one => one.dataset.estimator)"))


def test_a_column_sorts_both_ways_with_what_has_no_number_last_and_then_as_it_was(page, nasty):
    before = column(page, "named")
    assert before == [nasty, "ppo", "rloo", "exact"]
    button = "document.querySelector('.leaderboard th[data-column=gradient_variance_relative] button')"
    page.point(button, press=True)
    assert column(page, "named") == [nasty, "ppo", "rloo", "exact"]  # the highest first
    page.point(button, press=True)
    assert column(page, "named") == ["rloo", "ppo", nasty, "exact"]
    heading = "document.querySelector('.leaderboard th[data-column=gradient_variance_relative]')"
    assert page.value(f"{heading}.getAttribute('aria-sort')") == "ascending"
    page.point(button, press=True)
    assert column(page, "named") == before
    page.point("document.querySelector('.leaderboard th[data-column=named] button')", press=True)
    assert column(page, "named") == sorted(before, key=str.lower)


def test_the_filter_takes_names_and_families(page):
    def typed(words):
        page.value(
            "(() => { const one = document.querySelector('.board input[type=search]'); "
            f"one.value = {json.dumps(words)}; one.dispatchEvent(new Event('input')); }})()"
        )
        return column(page, "named")

    assert typed("PPO") == ["ppo"]
    assert typed("score") == ["rloo"]
    assert typed("no such estimator") == []
    assert len(typed("")) == 4


def test_an_estimator_is_followed_through_all_figures_and_let_go(page):
    figures = page.value("document.querySelectorAll('figure').length")
    page.point("document.querySelector('figure[data-name=test-reward] g[data-estimator=ppo] path')", press=True)
    assert names(page) == {"ppo"}
    lit = page.value("[...document.querySelectorAll('figure')].filter(one => one.querySelector('g.on')).length")
    assert lit == figures == 11  # that of any two columns too
    assert page.value("document.querySelector('tr.on').dataset.estimator") == "ppo"
    faded = "document.querySelector('figure g[data-estimator=rloo]')"
    assert float(page.value(f"getComputedStyle({faded}).opacity")) < 0.2
    page.key("Escape")
    assert names(page) == set() and page.value(f"getComputedStyle({faded}).opacity") == "1"


def test_a_family_is_followed_from_the_legend(page, nasty):
    page.point("document.querySelector('.legend li[data-family=other]')", press=True)
    assert names(page) == {nasty}
    page.point("document.querySelector('.following-bar button')", press=True)
    assert names(page) == set()


def test_the_numbers_of_a_mark_appear_under_the_pointer(page):
    page.point("document.querySelector('figure[data-name=test-reward] g[data-estimator=ppo] path')")
    said = page.value("document.querySelector('.tip:not([hidden])').textContent")
    cell = page.value("document.querySelector('tr[data-estimator=ppo] td[data-value][data-low]').title")
    assert said.startswith("ppo: test reward at 40 steps ")
    assert re.findall(r"[\d.]+", said)[1:4] == [f"{float(number):.4g}" for number in re.findall(r"[\d.]+", cell)]


def test_any_two_columns_are_drawn_with_the_numbers_of_the_table(page):
    def chosen(place, key):
        page.value(
            f"(() => {{ const one = document.querySelectorAll('.explorer select')[{place}]; "
            f"one.value = [...one.options].find(option => option.textContent === {json.dumps(key)}).value; "
            "one.dispatchEvent(new Event('change')); })()"
        )

    chosen(0, "KL, nats")
    chosen(1, "gold reward")
    label = page.value("document.querySelector('.explorer svg[role=img]').getAttribute('aria-label')")
    assert label == "gold reward against KL, nats"
    rows = page.value(
        "[...document.querySelectorAll('.explorer .numbers tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    place = "[...document.querySelectorAll('.leaderboard th')].findIndex(one => one.dataset.column === 'KEY')"
    for row in rows:
        cells = f"document.querySelector(`tr[data-estimator=${{CSS.escape({json.dumps(row[0])})}}]`).cells"
        for number, key in ((row[1], "kl_mean"), (row[4], "test_gold_reward_mean")):
            assert float(page.value(f"{cells}[{place.replace('KEY', key)}].dataset.value")) == float(number)
    assert (
        len(rows) == len(page.value("[...document.querySelectorAll('.explorer g[data-estimator]')].map(() => 1)")) == 3
    )


def test_a_figure_is_copied_as_svg_and_its_numbers_saved_as_csv(page, nasty):
    page.value("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    figure = "document.querySelector('figure[data-name=test-reward]')"
    page.point(f"{figure}.querySelector('.tools button')", press=True)
    root = ElementTree.fromstring(page.value("window.copied"))
    assert root.tag == f"{SVG}svg" and "--f0" in root.find(f"{SVG}style").text
    marks = {group.get("data-estimator"): group for group in root.iter(f"{SVG}g") if group.get("data-estimator")}
    assert set(marks) == {nasty, "ppo", "rloo"}
    assert marks["ppo"].find(f"{SVG}title").text.startswith("ppo: test reward")
    page.point(f"{figure}.querySelectorAll('.tools button')[2]", press=True)
    page.wait_for("Browser.downloadProgress", lambda one: one["state"] == "completed")
    saved = (page.downloads / "test-reward.csv").read_text()
    assert '"' + nasty.replace('"', '""') + '",' in saved  # quoted, as it has a quotation mark
    rows = list(csv.reader(io.StringIO(saved)))
    shown = page.value(
        f"[...{figure}.querySelectorAll('table.numbers tr')].map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )
    assert rows == shown and rows[1][0] == nasty


def test_hostile_names_are_text_and_neither_scripts_nor_requests_of_others_get_through(browser, written, nasty):
    browser.open(written)
    assert browser.value("document.querySelectorAll('b, i, u').length") == 0
    assert nasty in browser.value("document.body.innerText")
    browser.value(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'window.ran = 1' }))"
    )
    assert browser.value("window.ran") is None
    assert browser.value("fetch('https://example.org').then(() => 'fetched', () => 'refused')") == "refused"
    told, asked = browser.complaints()
    assert len(told) >= 2 and set(asked) == {written.as_uri()}


def test_without_its_script_the_page_is_whole(browser, written, nasty):
    browser.open(written)
    with_script = browser.value("document.querySelectorAll('figure svg[role=img]').length")
    browser.open(written, script=False)
    assert browser.value("document.querySelectorAll('button, .tools').length") == 0
    assert browser.value("document.querySelectorAll('figure svg[role=img]').length") == with_script - 1
    assert column(browser, "named") == [nasty, "ppo", "rloo", "exact"]
    title = browser.value("document.querySelector('figure g[data-estimator=ppo] > title').textContent")
    assert title.startswith("ppo: test reward")
    shown = "getComputedStyle(document.querySelector('.leaderboard .extra')).display"
    assert browser.value(shown) == "none"
    browser.point("document.querySelector('.more input')", press=True)
    assert browser.value(shown) == "table-cell"


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_screen(browser, written, width):
    """The leaderboard too; what is folded in may be scrolled in its own frame."""
    browser.open(written, width=width)
    assert browser.value("document.documentElement.scrollWidth") <= width
    wide = browser.value(
        "[...document.querySelectorAll('.first .wide, .board .wide, figure > .wide')]"
        ".filter(one => !one.closest('details') && one.scrollWidth > one.clientWidth + 1).map(one => one.outerHTML.slice(0, 200))"
    )
    # A name of forty letters may scroll in a table on a phone.
    assert [one for one in wide if "<svg" in one or width > 600] == []


TOUCHING = """[...document.querySelectorAll('figure')].flatMap(figure => {
  const frame = figure.querySelector('svg[role=img]').getBoundingClientRect();
  const texts = [...figure.querySelectorAll('svg[role=img] text')].filter(one => one.textContent.trim());
  const boxes = texts.map(one => one.getBoundingClientRect());
  const said = (...places) => [figure.dataset.name, ...places.map(place => texts[place].textContent)].join(': ');
  const cut = (box) => Math.max(frame.left - box.left, box.right - frame.right, box.bottom - frame.bottom) > 1;
  const shared = (a, b, low, high) => Math.min(a[high], b[high]) - Math.max(a[low], b[low]);
  const touch = (a, b) => shared(a, b, 'left', 'right') > 0.5 && shared(a, b, 'top', 'bottom') > 0.28 * a.height;
  return boxes.flatMap((a, i) => [...(cut(a) ? [said(i)] : []), ...boxes.flatMap((b, j) => j > i && touch(a, b) ? [said(i, j)] : [])]);
})"""


@pytest.mark.parametrize("width", [390, 1440])
def test_no_label_of_a_figure_is_cut_off_or_touches_another_one(browser, written, width):
    """A line of text is taller than its letters: they touch where more than a quarter of the lines does."""
    browser.open(written, width=width)
    assert browser.value(TOUCHING) == []
    browser.value("document.querySelector('figure svg[role=img] text').textContent += ' and so on'.repeat(9)")
    assert browser.value(TOUCHING) != []
