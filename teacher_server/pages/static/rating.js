"use strict";
// Keys of the rating page, while a label has the focus: y, m, n answer it, b goes back.
(() => {
  const form = document.getElementById("rating");
  if (!form) return;
  const words = { y: "yes", m: "maybe", n: "no" };
  // Not by an attribute: a browser heeds that after the first frame, and keys may come before it.
  form.querySelector("input[type=radio]").focus();

  form.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const fieldset = event.target.closest("fieldset");
    if (event.key === "b") {
      document.getElementById("before")?.click();
    } else if (event.key === "Enter" && fieldset) {
      event.preventDefault();
      form.requestSubmit();
    } else if (event.key in words && fieldset) {
      fieldset.querySelector(`input[value="${words[event.key]}"]`).checked = true;
      const next = fieldset.nextElementSibling;
      const focused = next.querySelector("input:checked, input") ?? next;
      focused.focus();
    }
  });
})();
