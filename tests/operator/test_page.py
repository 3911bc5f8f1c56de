"""The page in a browser: what is read off it in each state, by whom it can be used, and what it never does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from raftsvc.operator import Host, Keys, OperatorApp
from raftsvc.operator.console import Outcome
from raftsvc.transport.listener import Listener
from tests.effort import PATIENCE
from tests.operator.harness import FULL
from tests.operator.scenes import SCENES, feed_of

PATIENCE_MS = PATIENCE * 1000
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1440, "height": 900}


class Shown:
    """In the place of a Console: says what a test wants the page to be told."""

    def __init__(self) -> None:
        self.feed_of: Callable[[int], dict[str, Any]] = lambda step: feed_of("healthy", step)
        self.step = 0
        self.done: list[tuple[str, str, str]] = []
        self.outcome = Outcome("done", "that was done")

    def check(self) -> None: ...

    def feed(self, operator: Any) -> dict[str, Any]:
        self.step += 1
        told = self.feed_of(self.step)
        told["operator"] = {"name": operator.name, "may_act": operator.may_act, "way": operator.way}
        return told

    def act(self, operator: Any, what: str, whom: str, origin: str) -> Outcome:
        self.done.append((operator.name, what, whom))
        return self.outcome

    def note(self, *what: object) -> None: ...
    def note_refused(self, *what: object) -> None: ...


class Site:
    """The page, served, and pages of a browser that show it."""

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium
        self.shown = Shown()
        self.complaints: list[str] = []
        self._listeners: list[Listener] = []
        self._contexts: list[Any] = []

    def serve(self, access: Any = None) -> str:
        app = OperatorApp(self.shown, access or Host(lambda environ: "anna", False))  # type: ignore[arg-type]
        listener = Listener(app, "127.0.0.1:0")
        listener.start()
        assert listener.wait_bound(PATIENCE) and listener.address is not None
        self._listeners.append(listener)
        return f"http://127.0.0.1:{listener.address[1]}/"

    def open(self, url: str, size: dict[str, int] = DESK, **options: Any) -> Any:
        context = self.chromium.new_context(viewport=size, **options)
        context.set_default_timeout(PATIENCE_MS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.goto(url)
        return page

    def stop_serving(self) -> None:
        for listener in self._listeners:
            listener.stop()

    def close(self) -> None:
        for context in self._contexts:
            context.close()
        self.stop_serving()


@pytest.fixture
def site(chromium: Any) -> Iterator[Site]:
    made = Site(chromium)
    yield made
    made.close()


WORDS = {
    "forming": ("Forming", "it waits for n3.example:8001"),
    "healthy": ("Healthy", "Safe to lose one more: Yes"),
    "one dead": ("Serves, and can lose no other", "No answer", "Connection refused"),
    "no quorum": ("No quorum seen from here", "1 of 3 voters answer"),
    "catching up": ("n3.example:8001 is behind", "Catching up by snapshot"),
    "stalled disk": ("stalled", "the disk has not finished a write"),
    "diverged": ("In trouble", "n3.example:8001: halted DivergedError: this node applied"),
}
SAYS = """
(words) => {
  const said = document.querySelector("main").innerText.replace(/\\s+/g, " ");
  return words.every((each) => said.includes(each));
}
"""
CONTRAST = """
() => {
  const linear = (v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const parsed = (text) => text.match(/[\\d.]+/g).map(Number);
  const found = [];
  for (const element of document.querySelectorAll("#page *")) {
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.getClientRects().length || element.disabled) continue;
    if (element.closest(".away, .skip, dialog")) continue;
    let around = element, ground = [0, 0, 0, 0];
    const groundOf = (each) => parsed(getComputedStyle(each).backgroundColor);
    while (around && (ground = groundOf(around)).length === 4 && !ground[3]) around = around.parentElement;
    const a = light(parsed(getComputedStyle(element).color).slice(0, 3)), b = light(ground.slice(0, 3));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) found.push(element.textContent.trim().slice(0, 40) + " " + ratio.toFixed(2));
  }
  return found;
}
"""
CUT_OFF = """
() => {
  const found = [];
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  if (wide) found.push("the page is wider by " + wide);
  for (const each of document.querySelectorAll(".panel, .tiles > div, .list"))
    if (each.scrollWidth > each.clientWidth) found.push(each.id + " " + each.className + " has more than it shows");
  for (const time of document.querySelectorAll(".events time")) {
    const written = document.createRange();
    written.selectNodeContents(time);
    if (written.getBoundingClientRect().right > time.nextElementSibling.getBoundingClientRect().left)
      found.push(time.textContent + " is written over its sign");
  }
  return found;
}
"""


def test_each_state_is_told_in_words_that_can_be_read_on_a_phone_and_at_a_desk(site: Site) -> None:
    url = site.serve()
    pages = [site.open(url, size) for size in (PHONE, DESK)]
    for scene, words in WORDS.items():
        site.shown.feed_of = partial(feed_of, scene)
        for page in pages:
            page.evaluate("poll()")
            page.wait_for_function(SAYS, arg=words)
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide == 0, f"{scene}: {wide} pixels to the side"
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                assert page.evaluate(CONTRAST) == [], f"{scene}, {scheme}"
    assert site.complaints == [] and set(WORDS) == set(SCENES)


@pytest.mark.parametrize(
    ("host", "above"), [(".example", 0), ("-raft.default.svc.cluster.local", 1_790_000_000_000_000)]
)
def test_nothing_is_cut_off_or_written_over_something_else_on_any_screen(site: Site, host: str, above: int) -> None:
    """above: by how much indexes are higher, as they are in a cluster that was restored."""

    def feed(scene: str, step: int) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(json.dumps(feed_of(scene, step)).replace(".example", host))
        for each in (told, *told["members"]):
            for name in ("commit_index", "applied"):
                if isinstance(each.get(name), int):
                    each[name] += above
        return told

    page = site.open(site.serve())
    for scene in SCENES:
        site.shown.step, site.shown.feed_of = 0, partial(feed, scene)
        page.reload()
        page.evaluate("poll().then(poll)")
        page.get_by_text(WORDS[scene][0].replace(".example", host)).first.wait_for()
        for width in (320, PHONE["width"], 768, 1024, 1161, 1280, DESK["width"]):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(CUT_OFF) == [], f"{scene}, {width}"


def test_what_is_applied_a_second_is_not_what_a_member_did_that_does_not_answer(site: Site) -> None:
    page = site.open(site.serve())
    page.evaluate("poll().then(poll)")
    page.locator('#rate:text-is("82")').wait_for()
    site.shown.feed_of = lambda step: feed_of("no quorum", step)
    page.evaluate("poll().then(poll)")
    page.get_by_text("No quorum seen from here").wait_for()
    page.locator('#rate:text-is("0")').wait_for()


def test_a_page_whose_server_died_says_so_since_when_and_does_nothing_more(site: Site) -> None:
    page = site.open(site.serve())
    page.get_by_role("button", name="Evict n3.example:8001").wait_for()
    page.clock.install()
    site.stop_serving()
    page.clock.run_for(9000)
    page.evaluate("poll()")
    page.get_by_role("alert").get_by_text("No answer from this node since").wait_for()
    assert re.search(r"At \d\d:\d\d:\d\d: Healthy", page.inner_text("#verdict"))
    assert "No answer" in page.title() and "Not live" in page.inner_text("#live")
    assert page.get_by_role("alert").get_by_role("link").all_inner_texts() == ["n2.example:8001", "n3.example:8001"]
    assert page.locator(".acts button:enabled, .allowed button:enabled, #allow button:enabled").count() == 0


def test_a_page_whose_server_comes_back_is_live_again(site: Site) -> None:
    page = site.open(site.serve())
    page.get_by_text("Healthy").wait_for()
    page.route("**/feed", lambda route: route.abort())
    page.evaluate("heard -= 60000, poll()")
    page.get_by_role("alert").get_by_text("No answer from this node").wait_for()
    page.unroute("**/feed")
    page.get_by_text("Live, ").wait_for()
    assert page.locator("#stale").is_hidden() and page.inner_text("#verdict-title") == "Healthy"
    assert page.get_by_role("button", name="Evict n3.example:8001").is_enabled()
    assert page.get_by_role("button", name="Allow…").is_enabled()


def test_one_signs_in_looks_and_acts_by_the_keyboard_alone(site: Site) -> None:
    page = site.open(site.serve(Keys([FULL])))
    page.get_by_label("Operator's key").wait_for()
    page.keyboard.type("not a key of anybody")
    page.keyboard.press("Enter")
    page.get_by_role("alert").get_by_text("no operator's key").wait_for()
    page.keyboard.type(FULL.key)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Evict n3.example:8001").wait_for()
    assert FULL.key not in page.content() and page.evaluate("document.cookie") == ""
    page.get_by_role("button", name="Sign out").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.getAttribute('aria-label')") == "Evict n3.example:8001":
            break
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("2 voters remain").wait_for()
    page.wait_for_function("document.activeElement.textContent === 'Cancel'")
    page.keyboard.press("Escape")
    dialog.wait_for(state="hidden")
    assert site.shown.done == []
    page.wait_for_function("document.activeElement.getAttribute('aria-label') === 'Evict n3.example:8001'")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.textContent === 'Cancel'")
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.textContent.startsWith('Evict')")
    page.keyboard.press("Enter")
    page.get_by_role("status").get_by_text("Done: that was done").wait_for()
    assert site.shown.done == [("anna", "evict", "3")]


def test_what_is_asked_again_as_soon_as_it_was_given_up_is_done(site: Site) -> None:
    page = site.open(site.serve())
    page.get_by_role("button", name="Evict n3.example:8001").wait_for()
    page.evaluate(
        "() => { const m = feed.members.find((each) => each.addr === 'n3.example:8001');"
        " ask('evict', m); $('confirm').close(); ask('evict', m); }"
    )
    page.evaluate("new Promise((done) => setTimeout(done, 50))")  # what the first left behind comes later
    page.get_by_role("dialog").get_by_role("button", name="Evict").click()
    page.get_by_role("status").get_by_text("Done: that was done").wait_for()
    assert site.shown.done == [("anna", "evict", "3")]


def test_a_browser_that_keeps_no_cookie_is_told_of_after_signing_in(site: Site) -> None:
    page = site.open(site.serve(Keys([FULL])))
    page.route("**/feed", lambda route: route.fulfill(status=401, body="{}"))
    page.get_by_label("Operator's key").fill(FULL.key)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("does not send the cookie").wait_for()


def test_things_of_one_name_are_shown_as_often_as_there_are(site: Site) -> None:
    lock = {"name": "lock:orders", "holders": ["web-1"], "held": 1, "waiting": 0, "fence": 7}

    def feed(step: int) -> dict[str, Any]:
        told = feed_of("healthy", step)
        told["warnings"] = ["one thing", "another", "another"]
        told["term"] = min(step, 2)
        told["overview"] = {"locks": [{**lock, "part": "a"}, {**lock, "part": "b"}, lock, lock], "jobs": []}
        return told

    site.shown.feed_of = feed
    page = site.open(site.serve())
    page.locator('#term:text-is("2")').wait_for()  # so it is shown for the second time
    assert page.locator("#trouble-list > li").count() == 3
    rows = page.locator("#locks > tr > td:first-child").all_inner_texts()
    assert rows == ["a: lock:orders", "b: lock:orders", "lock:orders", "lock:orders"]


def test_focus_stays_where_it_is_while_the_page_is_told_news(site: Site) -> None:
    page = site.open(site.serve())
    page.get_by_role("button", name="Hand leadership over to n3.example:8001").focus()
    step, commit = site.shown.step, page.inner_text("#commit")
    page.evaluate("poll().then(poll)")
    page.wait_for_function("before => document.querySelector('#commit').textContent !== before", arg=commit)
    assert site.shown.step > step
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == "Hand leadership over to n3.example:8001"


def test_who_may_only_look_is_offered_nothing_to_do(site: Site) -> None:
    page = site.open(site.serve(Host(lambda environ: "eve", True)))
    page.get_by_text("eve (may look)").wait_for()
    assert page.locator("main button:visible").count() == 0


def test_an_outcome_that_is_not_known_is_called_so(site: Site) -> None:
    site.shown.outcome = Outcome("unknown", "nobody answered in time")
    page = site.open(site.serve())
    page.get_by_label("Address, as the node advertises it").fill("n4.example:8001")
    page.get_by_role("button", name="Allow…", exact=True).first.click()
    page.get_by_role("button", name="Allow", exact=True).click()
    page.get_by_text("The outcome is not known: nobody answered in time").wait_for()
    assert site.shown.done == [("anna", "allow", "n4.example:8001")]


def test_what_others_named_is_text_and_never_markup_or_a_script(site: Site) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"

    def poisoned(step: int) -> dict[str, Any]:
        def poison(thing: Any) -> Any:
            if isinstance(thing, dict):
                return {key: poison(value) for key, value in thing.items()}
            if isinstance(thing, list):
                return [poison(value) for value in thing]
            return thing + evil if isinstance(thing, str) else thing

        told = feed_of("diverged", step)
        kept = {"verdict": told["verdict"]["state"], "states": [m["state"] for m in told["members"]]}
        found: dict[str, Any] = poison(told)
        found["verdict"]["state"] = kept["verdict"]
        for member, state in zip(found["members"], kept["states"], strict=True):
            member["state"], member["url"] = state, "javascript:alert(3)//" + evil
            member["conditions"] = member["told"]["conditions"] = {evil: evil}
        found["node"]["conditions"] = {evil: evil}
        found["state"] = {evil: evil}
        return found

    site.shown.feed_of = poisoned
    page = site.open(site.serve())
    dialogs: list[Any] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog), dialog.dismiss()))
    page.get_by_text("onerror=alert(1)").first.wait_for()
    page.evaluate("poll()")
    assert dialogs == [] and site.complaints == []
    assert page.locator("img").count() == 0 and page.locator("script").count() == 1
    assert page.locator("a[href^='javascript']").count() == 0


def test_the_page_asks_nobody_but_its_own_server(site: Site) -> None:
    url = site.serve()
    page = site.open("about:blank")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    page.get_by_text("Healthy").wait_for()
    assert set(asked) == {url, f"{url}feed"}


def test_nothing_moves_for_who_wants_that(site: Site) -> None:
    page = site.open(site.serve(), reduced_motion="reduce")
    page.get_by_text("Healthy").wait_for()
    assert page.evaluate("document.getAnimations().length") == 0
