"""The HTML of mails in a browser, as two kinds of mail programs show it: those that remove style sheets, and Outlook
for Windows, which shows mail with Word.

Word is not here. Its limits are those of https://www.caniemail.com (Outlook for Windows 2007 to 2019, read 2026-06-29)
and of Microsoft's "Word 2007 HTML and CSS Rendering Capabilities in Outlook 2007". Where versions differ, the worst one
counts.
"""

from __future__ import annotations

import re

from playwright.sync_api import Page

_SHEET = re.compile(r"<style[^>]*>.*?</style>", re.DOTALL)
_FOR_WORD = re.compile(r"<!--\[if mso\]>(.*?)<!\[endif\]-->", re.DOTALL)
# css-important: only in sheets, and only after a space.
_IGNORED_IMPORTANT = re.compile(r"[\w-]+:[^;{}]*[^\s;{}]!important")

# Properties that Word knows, each with the elements on which it has no effect.
_KNOWN = {
    "background-color": "",  # css-background: nothing else of the shorthand
    "border": "a p div span",  # css-border: unreliable on p and div; on text it is a frame of at most 8 pixels
    "border-collapse": "",
    "color": "",
    "direction": "",
    "display": "img",  # css-display: only none
    "font-family": "",
    "font-size": "",
    "font-style": "",
    "font-weight": "",
    "height": "body span div p a",  # css-height
    "letter-spacing": "",
    "line-height": "",
    "margin": "body span a",  # css-margin; no auto, nothing negative
    "padding": "body a p div span img h1 h2",  # css-padding: only cells of tables
    "text-align": "",
    "text-decoration": "",
    "vertical-align": "",
    "width": "body span div p a img",  # css-width
}
# Applies sheets, without media queries (css-at-media) and by order alone, then takes out what Word does not know.
_LIMIT = """known => {
  const set = (style, name, value) => style.setProperty(name, value)
  for (const sheet of document.styleSheets)
    for (const rule of sheet.cssRules)
      if (rule.selectorText && !rule.selectorText.includes(":"))
        for (const one of document.querySelectorAll(rule.selectorText))
          for (const name of rule.style)
            if (!one.style.getPropertyValue(name) || rule.style.getPropertyPriority(name))
              set(one.style, name, rule.style.getPropertyValue(name))
  document.querySelectorAll("style").forEach(one => one.remove())
  const family = name => name in known ? name
    : ["border", "margin", "padding", "text-decoration"].find(one => name.startsWith(one + "-"))
  for (const one of document.querySelectorAll("[style]")) {
    const tag = one.localName
    for (const name of [...one.style]) {
      const value = one.style.getPropertyValue(name), known_as = family(name)
      if (!known_as || name.endsWith("radius") || known[known_as].split(" ").includes(tag)
          || /-(inline|block)\\b/.test(name) || (name === "display" && value !== "none")
          || (known_as === "margin" && /auto|^-/.test(value)))
        one.style.removeProperty(name)
      else if (name.endsWith("-width") && parseFloat(value) > 8)
        set(one.style, name, "8px")
    }
  }
  // html-bdi is unknown there; css-display-none does not hide tables in a hidden element.
  for (const one of document.querySelectorAll("bdi")) one.replaceWith(...one.childNodes)
  // Nor does it isolate text (css-unicode-bidi); it knows the attribute dir, but not its value "auto".
  for (const one of document.querySelectorAll("[dir=auto]")) one.removeAttribute("dir")
  for (const one of document.querySelectorAll("span[dir]")) one.style.unicodeBidi = "embed"
}"""


def show_without_sheets(page: Page, html: str) -> None:
    """Show a mail in a program that removes style sheets, as Gmail's mobile web mail does (html-style)."""
    page.goto("about:blank")  # the policy of a page before would hold
    page.set_content(_SHEET.sub("", html))


def show_in_word(page: Page, html: str) -> None:
    """Show a mail with the limits of Word, which reads comments for itself (html-comments) and no DOCTYPE."""
    page.goto("about:blank")
    seen = _FOR_WORD.sub(r"\1", html.replace("<!doctype html>", ""))
    page.set_content(_SHEET.sub(lambda sheet: _IGNORED_IMPORTANT.sub("", sheet[0]), seen))
    page.evaluate(_LIMIT, _KNOWN)
