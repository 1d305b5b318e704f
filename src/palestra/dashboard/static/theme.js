// Before the page is drawn, so that it does not flash in the other scheme.
"use strict";
try {
  const theme = localStorage.getItem("palestra-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch { /* no storage: as the system */ }
