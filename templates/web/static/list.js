"use strict";
// The list of messages with scripts: ranges of messages, keys, and acting without loading the page again. Each act is a
// form of the page, sent to its own address; the answer is the list again, which takes the place of the one shown.
// Texts are in list-script.html.
(function () {
  // Older browsers have the list without scripts.
  if (!("submitter" in SubmitEvent.prototype && HTMLFormElement.prototype.requestSubmit && Array.prototype.findLast && Object.hasOwn)) return;
  const main = document.querySelector("main");
  const status = document.getElementById("status"); // here since loading: screen readers announce only what changes
  const texts = status.dataset;
  const card = document.getElementById("shortcuts").content.firstElementChild.cloneNode(true);
  const number = new Intl.NumberFormat(document.documentElement.lang);
  let begin = "", end = ""; // ids of the rows where a range begins, and where Shift with j or k has led it
  let place = ""; // id of the row that had the focus last
  let sending = false;
  let chosen = null; // the row that a key selected to act on
  let going = -Infinity; // when g was pressed, the first of two keys that open another folder

  const one = (selector, within = main) => within.querySelector(selector);
  const all = (selector, within = main) => [...within.querySelectorAll(selector)];
  const rows = (within) => all(".rows > li", within);
  const boxes = () => all('.rows [name="mail"]');
  const boxOf = (row) => one('[name="mail"]', row);
  const checkedRows = () => rows().filter((row) => boxOf(row)?.checked);
  const beside = () => one('.beside [name="mail"]'); // of messages on other pages, selected before signing in again
  const isAll = () => one('.list > [name="all"]'); // messages of other pages are selected as well

  function make(name, className, textContent, click) {
    const made = Object.assign(document.createElement(name), { className, textContent });
    if (click) {
      made.type = "button";
      made.addEventListener("click", click);
    }
    return made;
  }

  function say(text) {
    status.textContent = "";
    setTimeout(function () { status.textContent = text; }, 50); // so that the same text is announced again
  }

  // ---- selection

  function check(some, checked) {
    for (const row of some) if (boxOf(row)) boxOf(row).checked = checked;
    showSelection();
  }

  function checkRange(row) {
    const list = rows(), end = list.indexOf(row), from = list.findIndex((each) => each.id === begin);
    check(from < 0 ? [row] : list.slice(Math.min(from, end), Math.max(from, end) + 1), boxOf(row).checked);
    say(one(".selected").textContent);
  }

  function beginAt(row) {
    begin = row.id;
    end = "";
  }

  function toggle(row, isRange) {
    if (!boxOf(row)) return;
    check([row], isRange || !boxOf(row).checked);
    if (isRange) checkRange(row);
    beginAt(row);
  }

  // As Shift with the arrow keys does in other lists: on the way back rows are left out again.
  function extend(row, by) {
    const list = rows(), at = list.indexOf(row), next = list[at + by];
    if (!next || !boxOf(row)) return;
    let from = row.id === end ? list.findIndex((each) => each.id === begin) : -1;
    if (from < 0) {
      from = at;
      begin = row.id;
    }
    if (Math.abs(at + by - from) < Math.abs(at - from)) check([row], false); else check([row, next], true);
    end = next.id;
    focus(next);
    say(one(".selected").textContent);
  }

  function showSelection() {
    const checked = checkedRows(), bar = one(".bar");
    if (!bar) return;
    const chosenBoxes = all('.list [name="mail"]:checked:enabled');
    const count = chosenBoxes.reduce((sum, box) => sum + box.value.split(" ").length, 0); // with similar messages
    const text = count && !isAll() ? texts.selected.replace("{number}", number.format(count)) : "";
    one(".selected", bar).textContent = text;
    if (!isAll()) one(".select").textContent = checked.length < boxes().length ? texts.all : texts.none;
    // For the way back to this page. The browser itself would check boxes by their position.
    history.replaceState({ checked: checked.map((row) => row.id) }, "");
  }

  main.addEventListener("click", function (event) {
    const row = event.target.closest(".tick")?.closest("li");
    if (row && event.target === boxOf(row)) {
      if (event.shiftKey) checkRange(row); else showSelection();
      beginAt(row);
    } else if (row && event.shiftKey) { // Firefox does not pass this click on to the box of the label.
      event.preventDefault();
      toggle(row, true);
    }
  });
  main.addEventListener("change", (event) => event.target === beside() && showSelection());
  main.addEventListener("mousedown", function (event) {
    if (event.shiftKey && event.target.closest(".tick")) event.preventDefault(); // It would select text.
  });

  // ---- keys

  function focus(row) {
    row?.focus({ preventScroll: true });
    row?.scrollIntoView({ block: "nearest" });
  }

  function step(by) {
    const list = rows(), at = list.findIndex((row) => row.id === place);
    focus(at < 0 ? list[0] : list[at + by]);
  }

  function press(act, row) {
    if (sending) return; // It would select a row for the act after this one.
    const button = one(`.bar [name="do"][value="${act}"]`);
    if (checkedRows().length || isAll() || !row && beside()?.checked) button?.click();
    else if (row && act === "release") {
      const own = one('.do [formaction*="/release"], .do [value^="release "]', row);
      // The page of a suspicious or dangerous message has the caution.
      if (own || one('.do .button, .do [formaction*="/ask"]', row)) (own || one(".mail", row)).click();
    } else if (row && button) {
      if (beside()) beside().disabled = true; // The key is for this row alone.
      toggle(row);
      chosen = row;
      button.click();
    }
  }

  const keys = {
    j: (row, isShift) => isShift && row ? extend(row, 1) : step(1),
    k: (row, isShift) => isShift && row ? extend(row, -1) : step(-1),
    x: function (row, isShift) {
      const target = row || document.getElementById(place) || rows()[0];
      if (!row) focus(target);
      if (target) toggle(target, isShift);
    },
    l: () => one(".orders .likely")?.click(),
    a: () => one(".select")?.click(),
    o: (row) => row && one(".mail", row).click(),
    r: (row) => press("release", row),
    d: (row) => press("delete", row),
    "#": (row) => press("delete", row),
    g: () => { going = performance.now(); },
    u: () => one('.done [value="restore"], .done [name="undo"]')?.click(),
    "/": () => one('.search [name="q"]').select(),
    "?": () => card.showModal(),
  };
  const folders = { h: "held", r: "released", d: "deleted" };

  function keyOf(event) {
    if (event.key.length > 1 || event.key < "\x7f") return event.key.toLowerCase();
    // A layout without Latin letters, as for Arabic: the key's place on a keyboard that has them.
    return event.code === "Slash" ? (event.shiftKey ? "?" : "/") : event.code.replace("Key", "").toLowerCase();
  }

  function areKeysOn() {
    try { return localStorage.getItem("shortcuts") !== "off"; } catch { return one("input", card).checked; }
  }

  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || card.open) return;
    if (event.target.closest("input:not([type=checkbox]), select, textarea")) return;
    const row = document.activeElement.closest(".rows > li"), key = keyOf(event);
    if (key === "enter" && event.target === row) one(".mail", row).click(); // as on a link, so it cannot be switched off
    const isSecond = performance.now() - going < 2000; // milliseconds
    going = -Infinity;
    if (!areKeysOn() || !Object.hasOwn(keys, key) && !(isSecond && Object.hasOwn(folders, key))) return;
    event.preventDefault();
    if (isSecond && Object.hasOwn(folders, key)) one(`.views a[href*="state=${folders[key]}"]`).click();
    else if (!event.repeat || key === "j" || key === "k") keys[key](row, event.shiftKey);
  });
  main.addEventListener("focusin", function (event) {
    place = event.target.closest(".rows > li")?.id || place;
  });

  // ---- acts

  document.addEventListener("submit", function (event) {
    const form = event.target, button = event.submitter;
    if (form.method !== "post" || !main.contains(form) || form.dataset.plain) return;
    event.preventDefault();
    // The button without a value is the one that Enter presses.
    if (!sending && (!button?.name || button.value)) send(form, button);
  });

  function send(form, button) {
    const request = new XMLHttpRequest(); // It parses the answer itself, so that no string is used as HTML.
    const address = new URL(button?.getAttribute("formaction") || form.getAttribute("action"), location).href;
    const fields = new URLSearchParams(new FormData(form));
    if (button?.name) fields.append(button.name, button.value);
    request.open("POST", address);
    request.responseType = "document";
    request.onloadend = function () {
      const page = request.response, isRedirected = request.responseURL !== address;
      if (!request.status) fail(texts.offline);
      else if (request.status === 200 && page?.getElementById("status")) {
        replace(page, request.responseURL, button).finally(() => setSending(false));
      } else if (isRedirected) location.assign(request.responseURL); // sign-in, progress of a job
      else if (request.status < 400) { // a question: the browser shows it
        form.dataset.plain = "yes";
        form.requestSubmit(button);
      } else {
        const words = page ? all("main > h1, main > p:not(.back)", page).map((each) => each.textContent.trim()) : [];
        fail(words.join(" – ") || texts.failed);
      }
    };
    setSending(true);
    request.send(fields);
  }

  function fail(text) {
    if (chosen) check([chosen], false);
    setSending(false);
    showResult([make("p", "state bad", text)], text);
  }

  function setSending(on) {
    sending = on;
    if (!on) {
      chosen = null;
      if (beside()) beside().disabled = false;
      showSelection();
    }
    document.body.classList.toggle("sending", on);
  }

  function showResult(results, text) {
    const toast = make("div", "toast done"), close = make("button", "", texts.close, function () {
      toast.remove();
      focus(document.getElementById(place));
    });
    one(".toast")?.remove();
    toast.append(...results, close);
    status.before(toast);
    say(text);
  }

  async function replace(page, address, button) {
    const fresh = one("main", page), old = rows();
    // What was acted on may still be listed: the next act is not for it as well.
    const checked = button?.closest(".bar") ? [] : checkedRows().map((row) => row.id);
    const typing = document.activeElement.closest(".search") && document.activeElement;
    const gone = old.filter((row) => !page.getElementById(row.id));
    const come = rows(fresh).find((row) => !old.some((each) => each.id === row.id));
    // The focus goes to the row below the first that has gone, or else to one that has come back.
    const below = old.slice(old.indexOf(gone[0])).find((row) => !gone.includes(row)) || old.findLast((row) => !gone.includes(row));
    const next = gone.length ? below?.id : document.activeElement.closest(".toast") ? come?.id : place;
    const results = all(".done, [role=alert]", fresh);
    const words = results.flatMap((each) => each.matches("p") ? [each] : all("p:not(details p), summary", each));
    await fold(gone);

    for (const each of results) {
      each.remove();
      each.removeAttribute("role"); // It is announced by `status`.
    }
    one(".search", fresh).replaceWith(one(".search")); // It may have words that are not sent yet.
    for (const each of [...main.children]) if (each !== status) each.remove();
    status.before(...[...fresh.children].filter((each) => each.id !== "status"));
    document.title = page.title;
    history.replaceState(null, "", address);
    prepare();
    check(rows().filter((row) => checked.includes(row.id)), true);
    if (results.length) showResult(results, words.map((each) => each.textContent.trim()).join(" – "));
    if (typing) typing.focus();
    else focus(document.getElementById(next) || (gone.length ? rows()[0] || document.getElementById("list") : null));
  }

  async function fold(gone) {
    if (!gone.length || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    for (const row of gone) {
      row.style.overflow = "hidden";
      const high = { height: `${row.offsetHeight}px` }, low = { height: 0, minHeight: 0, opacity: 0 };
      row.animate([high, low], { duration: 150, fill: "forwards" });
    }
    await new Promise((resolve) => setTimeout(resolve, 150));
  }

  // ---- what only a script can do, added to the page

  function prepare() {
    const showCard = () => card.showModal(), link = one(".select");
    one(".foot").append(make("button", "plain keys", texts.shortcuts, showCard));
    one(".bar")?.prepend(make("span", "selected", ""));
    if (link && !isAll()) link.replaceWith(make("button", "plain select", "", function () {
      const isMore = checkedRows().length < boxes().length;
      if (beside() && !isMore) beside().checked = false;
      check(rows(), isMore);
      say(one(".selected").textContent);
    }));
  }

  one("input", card).checked = areKeysOn();
  one("input", card).addEventListener("change", function (event) {
    try { localStorage.setItem("shortcuts", event.target.checked ? "on" : "off"); } catch { /* until the page is left */ }
  });
  one("button", card).addEventListener("click", () => card.close());
  document.body.append(card);
  // Restored from the back/forward cache: other pages may have changed what is shown.
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
  const kept = history.state?.checked;
  prepare();
  check(rows().filter((row) => kept?.includes(row.id)), true);
})();
