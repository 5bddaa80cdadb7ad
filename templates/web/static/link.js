"use strict";
// Submits the form of a page for a person who has already clicked a link in a message. The server decides which pages
// may do so (data-submit), and checks again when the form arrives without its button.
(function () {
  const form = document.querySelector("form[data-submit]");
  // navigator.webdriver: a browser controlled by a program. It may read the page, but must not submit the form.
  if (!form || navigator.webdriver) return;
  const working = form.querySelector(".working");
  let timer = 0;

  function stop() {
    clearTimeout(timer);
    timer = 0;
    working.hidden = true;
  }

  function begin() {
    if (timer || document.prerendering || document.visibilityState !== "visible") return;
    working.hidden = false;
    // Leave time to read the page and to close it, unless the server knows this browser well enough.
    timer = setTimeout(function () { form.submit(); }, form.dataset.submit === "now" ? 0 : 1500);
  }

  form.addEventListener("submit", stop);
  document.addEventListener("prerenderingchange", begin);
  document.addEventListener("visibilitychange", function () {
    if (document.visibilityState === "visible") begin(); else stop();
  });
  // Restored from the back/forward cache: do not submit again.
  window.addEventListener("pageshow", function (event) {
    if (event.persisted) location.reload();
  });
  begin();
})();
