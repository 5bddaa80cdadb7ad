"""Rules for every page: what a screen reader says of it, from the browser's accessibility tree, what fits, and axe."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

_NODE = re.compile(r"""^ *- '?(?P<role>[a-z]+)(?: "(?P<name>(?:[^"\\]|\\.)*)")?(?P<states>(?: \[[^]]*\])*)""")
_URL = re.compile(r"^ *- /url: (.*)$")
_UNIQUE = {"button", "checkbox", "navigation", "textbox", "combobox"}  # two with the same name cannot be told apart
_NAMED = _UNIQUE | {"link", "radio", "searchbox", "progressbar", "dialog"}

# WCAG 2.2, 2.5.8: 24 pixels, but for links within a sentence. A label is a part of its checkbox.
_SMALL_TARGETS = """() => [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary")]
    .map(one => [one, (one.closest("label") ?? one).getBoundingClientRect()])
    .filter(([one, box]) => one.checkVisibility({visibilityProperty: true}) && box.width > 1 && box.height > 1
        && (box.width < 23.5 || box.height < 23.5) && !(one.matches("a") && getComputedStyle(one).display === "inline"))
    .map(([one, box]) => `${Math.round(box.width)}x${Math.round(box.height)} ${one.outerHTML.slice(0, 100)}`)"""

# Links, buttons and what unfolds, where less than 44 by 44 pixels can be hit (WCAG 2.2, 2.5.5), also beside the element
# itself. Links within a sentence are left out: the text before them does not end one, or the text after goes on.
_LOW_TARGETS = r"""() => {
    const isHit = (one, x, y) => {
        const top = document.elementFromPoint(x, y);
        return top !== null && (one.contains(top) || top.contains(one) && top.localName === "label");
    };
    const reach = (one, x, y, dx, dy) => {
        let far = 0;
        while (far < 44 && isHit(one, x + dx * (far + .5), y + dy * (far + .5))) far += .5;
        return far;
    };
    // The link of a row is as large as the row, but for what else the row has.
    const points = one => {
        const box = one.matches(".mail") ? one.closest("li").getBoundingClientRect() : one.getClientRects()[0];
        const parts = one.matches(".mail") ? [.5, .1, .2, .3, .4, .6, .7, .8, .9] : [.5];
        return parts.map(part => [box.x + box.width * part, box.y + box.height / 2]);
    };
    // On wide screens with a mouse similar messages have 24 pixels (2.5.8), so that their rows stay low.
    const isLow = matchMedia("(min-width: 56rem) and (not (pointer: coarse))").matches;
    const least = one => one.matches(".alike > summary") && isLow ? 23.5 : 43;
    const isLarge = one => points(one).some(([x, y]) => isHit(one, x, y)
        && reach(one, x, y, -1, 0) + reach(one, x, y, 1, 0) >= 43
        && reach(one, x, y, 0, -1) + reach(one, x, y, 0, 1) >= least(one));
    const isInSentence = one => {
        const block = one.closest("p, li, dd, td, div"), before = new Range(), after = new Range();
        if (!one.matches("a") || getComputedStyle(one).display !== "inline" || !block) return false;
        before.setStart(block, 0);
        before.setEndBefore(one);
        after.setStartAfter(one);
        after.setEnd(block, block.childNodes.length);
        return /[^\s.:!?·]\s*$/.test(before.toString()) || /^\s*[\p{L}\p{N}(“]/u.test(after.toString());
    };
    // What stays in sight would cover others: here it is as long as all details are open.
    const sticky = [...document.querySelectorAll("*")].filter(one => getComputedStyle(one).position === "sticky");
    for (const one of sticky) Object.assign(one.style, {position: "relative", inset: "auto"});
    const found = [], seen = document.querySelector("dialog:modal") ?? document;
    for (const one of seen.querySelectorAll("a[href], button, summary")) {
        const box = one.getBoundingClientRect();
        if (!one.checkVisibility({visibilityProperty: true}) || box.width < 2 || box.height < 2) continue;
        if (one.closest("[aria-hidden=true]") || getComputedStyle(one).clipPath !== "none") continue;
        if (box.width > 43.5 && box.height > 43.5 || isInSentence(one)) continue;
        one.scrollIntoView({block: "center", inline: "center"});
        const size = `${Math.round(box.width)}x${Math.round(box.height)}`;
        if (!isLarge(one)) found.push(`${size} ${one.outerHTML.slice(0, 150)}`);
    }
    for (const one of sticky) Object.assign(one.style, {position: "", inset: ""});
    scrollTo(0, 0);
    return found; }"""

_COLOUR_RULES = ["color-contrast", "link-in-text-block"]
# axe reads the style sheets for css-orientation-lock alone, an experimental rule, which is off.
_RUN = """([elements, options]) => axe.run(elements ?? document, {
    resultTypes: ["violations"], preload: {assets: ["media"]}, ...options}).then(found => found.violations)"""
# For each text: a hash of all styles by which these rules judge it, with those of what it is painted on. `window.texts`
# keeps one element for each.
_TEXTS = r"""() => {
    const under = new Map(), own = ["color", "fontSize", "fontWeight", "textDecoration", "textShadow", "borderBottom"];
    const back = ["backgroundColor", "backgroundImage", "opacity", "filter", "mixBlendMode"];
    const hash = text => [...text].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) | 0, 7);
    window.texts = new Map();
    for (const one of document.querySelectorAll("*")) {
        const style = getComputedStyle(one), parent = under.get(one.parentElement) ?? "";
        const ground = parent + back.map(name => style[name]).join() + ";";
        under.set(one, parent && ground.endsWith(";rgba(0, 0, 0, 0),none,1,none,normal;") ? parent : ground);
        const hasText = [...one.childNodes].some(each => each.nodeType === 3 && each.data.trim());
        const {width, height} = one.getBoundingClientRect();  // of texts for screen readers: 1 pixel
        if (!hasText && !one.matches("input, textarea, select") || width < 2 || height < 2) continue;
        if (!one.checkVisibility({visibilityProperty: true})) continue;
        const around = one.parentElement ? getComputedStyle(one.parentElement).color : "";
        const key = [one.localName, one.matches(":disabled"), around, under.get(one), ...own.map(name => style[name])];
        const number = hash(key.join("|"));
        if (!window.texts.has(number)) window.texts.set(number, one);
    }
    return [...window.texts.keys()] }"""


class Axe:
    """axe-core in pages of a width. It judges the colours of texts with the same styles on three pages only."""

    def __init__(self) -> None:
        self._judged: Counter[int] = Counter()

    def violations(self, page: Page) -> list[dict[str, Any]]:
        """Return the violations of axe's rules, and of those of colours in light and dark: no others depend on them."""
        if page.evaluate("typeof axe === 'undefined'"):
            page.evaluate(AXE_SCRIPT)
        others = {"rules": {name: {"enabled": False} for name in _COLOUR_RULES}}
        found: list[dict[str, Any]] = page.evaluate(_RUN, [None, others]) + self._colours(page)
        page.emulate_media(color_scheme="dark")
        found += self._colours(page)
        page.emulate_media(color_scheme="light")
        return found

    def _colours(self, page: Page) -> list[dict[str, Any]]:
        new = [key for key in page.evaluate(_TEXTS) if self._judged[key] < 3]
        self._judged.update(new)
        run = f"([keys, options]) => ({_RUN})([keys.map(key => texts.get(key)), options])"
        violations: list[dict[str, Any]] = page.evaluate(run, [new, {"runOnly": _COLOUR_RULES}]) if new else []
        return violations


@dataclass
class Node:
    """An element as a screen reader sees it. ``url``: of a link."""

    role: str
    name: str
    level: int
    url: str = ""


def nodes(page: Page) -> list[Node]:
    """Return the elements of a page in reading order."""
    found: list[Node] = []
    for line in page.locator("body").aria_snapshot().splitlines():
        if url := _URL.match(line):
            found[-1].url = url[1]
        elif node := _NODE.match(line):
            level = re.search(r"\[level=(\d)\]", node["states"])
            found.append(Node(node["role"], node["name"] or "", int(level[1]) if level else 0))
    return found


def unclear(page: Page) -> list[str]:
    """Return what would confuse somebody who only hears the page."""
    tree = nodes(page)
    levels = [node.level for node in tree if node.role == "heading"]
    roles = Counter(node.role for node in tree)
    found = [f"{role}: {roles[role]} times" for role in ("main", "banner") if roles[role] != 1]
    if levels.count(1) != 1 or levels[0] != 1 or any(after > before + 1 for before, after in zip(levels, levels[1:])):
        found.append(f"the headings have the levels {levels}")
    found += [f"a {node.role} has no name" for node in tree if node.role in _NAMED and not node.name]
    names = Counter((node.role, node.name) for node in tree if node.role in _UNIQUE)
    found += [f"{role} {name!r} {count} times" for (role, name), count in names.items() if count > 1]
    urls: dict[str, set[str]] = {}
    for node in tree:
        if node.role == "link":
            urls.setdefault(node.name, set()).add(node.url.partition("?")[0])
    found += [f"link {name!r} to {sorted(to)}" for name, to in urls.items() if len(to) > 1]
    return [f"{page.title()}: {problem}" for problem in found]


def low_targets(page: Page) -> list[str]:
    """Return the targets that are too small for a finger. Rows of similar messages are checked open, then closed."""
    found = page.evaluate(_LOW_TARGETS)
    page.locator(".alike").evaluate_all("all => all.forEach(one => { one.open = false })")
    found += page.evaluate(_LOW_TARGETS)
    return [f"{page.title()}: less than 44 pixels: {target}" for target in dict.fromkeys(found)]


def misfits(page: Page) -> list[str]:
    """Return what is too wide, also with text twice as large (WCAG 2.2, 1.4.4), and targets that are too small."""
    found = [f"too small: {target}" for target in page.evaluate(_SMALL_TARGETS)]
    for size in ("100%", "200%"):
        width, wide = page.evaluate(
            """size => {
                document.documentElement.style.fontSize = size;
                const most = document.documentElement.scrollWidth, room = document.documentElement.clientWidth;
                const wide = [...document.querySelectorAll("main *")].filter(one => one.checkVisibility()
                    && one.getBoundingClientRect().right > room + 1).map(one => one.outerHTML.slice(0, 100));
                document.documentElement.style.fontSize = "";
                return [most - room, wide.slice(0, 2)] }""",
            size,
        )
        if width > 0:
            found.append(f"{width} pixels too wide with text at {size}: {wide}")
    return [f"{page.title()}: {problem}" for problem in found]
