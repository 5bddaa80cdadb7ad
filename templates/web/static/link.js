"use strict";
// Presses the button of a page on behalf of a person who has already clicked in a mail. The server alone decides
// which page may do so (data-submit) and checks once more when the form arrives without its button.
(function () {
  const form = document.querySelector("form[data-submit]");
  // navigator.webdriver: a browser steered by a program. It may read the page, a person presses the button.
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
    // Time to see what is about to happen, and to close the page.
    timer = setTimeout(function () { form.submit(); }, 1500);
  }

  form.addEventListener("submit", stop);
  document.addEventListener("prerenderingchange", begin);
  document.addEventListener("visibilitychange", function () {
    if (document.visibilityState === "visible") begin(); else stop();
  });
  // Shown again from the back/forward cache: what was begun then is not begun again.
  window.addEventListener("pageshow", function (event) {
    if (event.persisted) location.reload();
  });
  begin();
})();
