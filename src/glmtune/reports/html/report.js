"use strict";

// The button shows the page in the other language.
const root = document.documentElement;
const button = document.getElementById("language");
button.hidden = false;
button.addEventListener("click", () => { root.lang = root.lang === "zh" ? "en" : "zh"; });

// On paper everything is open.
const closed = () => [...document.querySelectorAll("details:not([open])")];
let opened = [];
addEventListener("beforeprint", () => { opened = closed(); for (const each of opened) each.open = true; });
addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
