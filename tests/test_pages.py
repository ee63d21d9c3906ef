"""The pages of the built book in a browser: mathematics, width, pictures, no request to a network, the calculator."""

from calculator import check_page

# Formulas may be wider than a phone only inside something that scrolls.
CLIPPED = """() => [...document.querySelectorAll('article mjx-container, article img, article table')].filter(e => {
  if (!e.getClientRects().length || e.getBoundingClientRect().right <= innerWidth + 1) return false;
  for (let up = e; up && up !== document.body; up = up.parentElement)
    if (['auto', 'scroll'].includes(getComputedStyle(up).overflowX)) return false;
  return true;
}).map(e => e.outerHTML.slice(0, 200))"""


def test_pages_in_a_browser(page, html, pages):
    """On a desk in light and on a phone in dark; mathematics is typeset once for both."""
    for name in pages:
        page.set_viewport_size({"width": 1280, "height": 900})
        page.emulate_media(color_scheme="light")
        page.goto((html / f"{name}.html").as_uri())
        page.evaluate("window.MathJax?.startup?.promise")
        mathematics = page.locator("span.math, div.math").count()
        assert page.locator("mjx-merror").count() == 0, name
        assert page.locator("mjx-container").count() >= mathematics, name
        for width, mode, other in ((1280, "light", "dark"), (390, "dark", "light")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=mode)
            overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert overflow <= 0, f"{name} is {overflow} pixels too wide at {width}"
            assert page.evaluate(CLIPPED) == [], f"{name} at {width}"
            visible = "images => images.every(image => image.checkVisibility({visibilityProperty: true}))"
            hidden = "images => !images.some(image => image.checkVisibility({visibilityProperty: true}))"
            assert page.locator(f"article img.only-{mode}").evaluate_all(visible), f"{name} in {mode}"
            assert page.locator(f"article img.only-{other}").evaluate_all(hidden), f"{name} in {mode}"


def test_the_calculator_of_the_book_agrees_with_python(page, html):
    name = html / "notebooks" / "14_budget.html"
    check_page(page, name.as_uri())
    links = page.locator("#budget-calculator a").all()
    assert links
    for link in links:
        file, _, place = link.get_attribute("href").partition("#")
        assert f'id="{place}"' in (name.parent / file).read_text(), link.get_attribute("href")
