"use strict";
// Sends a sign-in code as soon as its last digit was typed or pasted. The page says so before.
(function () {
  const field = document.querySelector("[data-digits]");
  if (!field) return;
  const form = field.form;
  let sent = "";
  form.querySelector("[hidden]").hidden = false;
  field.addEventListener("input", function () {
    const code = field.value.replace(/\s/g, "");
    if (code.length !== Number(field.dataset.digits) || code === sent) return;
    sent = code;
    form.requestSubmit();
  });
})();
