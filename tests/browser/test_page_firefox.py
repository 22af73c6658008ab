"""The example's page in a real Firefox, which Playwright doesn't steer."""

from pathlib import Path

from tests.support.example import ExampleApp
from tests.support.firefox import Firefox, FirefoxTab

_WAIT = """({ selector, text }) => new Promise((resolve) => {
  const look = () => {
    const found = document.querySelector(selector)?.textContent ?? "";
    if (found.includes(text)) resolve(found); else setTimeout(look, 20);
  };
  look();
})"""
_SEND = """({ subject, data, how }) => {
  for (const [id, value] of [["how", how], ["publish-subject", subject], ["publish-data", data]]) {
    document.getElementById(id).value = value;
    document.getElementById(id).dispatchEvent(new Event("change", { bubbles: true }));
  }
  document.getElementById("publish").requestSubmit();
}"""


async def shows(tab: FirefoxTab, selector: str, text: str) -> str:
    """Wait until the text of an element has this in it; return all of it."""
    shown: str = await tab.evaluate(_WAIT, {"selector": selector, "text": text})
    return shown


async def test_page_works_in_firefox(tmp_path: Path) -> None:
    with ExampleApp() as app:
        async with Firefox.running(tmp_path) as firefox, firefox.profile() as profile:
            tab = await profile.tab()
            await tab.goto(app.url)
            await shows(tab, "#state", "Connected")
            await tab.evaluate("document.getElementById('subject').value = 'test.page'")
            await tab.evaluate("document.getElementById('subscribe').requestSubmit()")
            await shows(tab, "#subscriptions", "test.page")
            for subject, data, how, outcome in (
                ("test.page", '{"text": "Hello"}', "ack", "Stored"),
                ("rooms.7", "1", "ack", "publish.forbidden"),
                ("test.page", "é plain", "publish", "Sent"),
                ("example.echo", "[1,  2]", "request", "Answered"),
                ("example.none", "1", "request", "request.no_responders"),
            ):
                await tab.evaluate(_SEND, {"subject": subject, "data": data, "how": how})
                await shows(tab, "#sent li:first-child", outcome)
            await shows(tab, "#rows", "é plain")
            assert '{ "text": "Hello" }' in await shows(tab, "#rows", "Hello")
            assert profile.complaints == []
