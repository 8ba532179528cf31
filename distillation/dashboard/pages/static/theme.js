// Light or dark, before anything is painted: as the system says until one is chosen.
(() => {
  "use strict";
  const root = document.documentElement;
  const remembered = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  if (["light", "dark"].includes(remembered())) root.dataset.theme = remembered();
  const changed = () => dispatchEvent(new Event("themechange"));
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", changed);
  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    button.hidden = false;
    button.addEventListener("click", () => {
      const now = root.dataset.theme || (system.matches ? "dark" : "light");
      root.dataset.theme = now === "dark" ? "light" : "dark";
      try { localStorage.setItem("theme", root.dataset.theme); } catch { /* for this page only */ }
      changed();
    });
  });
})();
