"use strict";
// Offers the browser's time zone on the preferences page if it is another one than the page uses. It changes the field
// only when its button is pressed, and nothing is saved before *Save* is.
(function () {
  const select = document.getElementById("timezone");
  const offer = document.getElementById("zone-offer");
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (!select || !offer || !zone || zone === offer.dataset.zone) return;
  offer.querySelector("bdi").textContent = zone.replaceAll("_", " ");
  offer.querySelector("button").addEventListener("click", function () {
    const known = Array.from(select.options).find(function (each) { return each.value === zone; });
    if (!known) select.append(new Option(zone.replaceAll("_", " "), zone));
    select.value = zone;
    offer.hidden = true;
    select.focus();
  });
  offer.hidden = false;
})();
