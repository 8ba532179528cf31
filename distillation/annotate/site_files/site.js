// Theme, menu, search, and the uses of a name. A page reads without it.
(() => {
  "use strict";
  const { up, own } = document.currentScript.dataset;
  const root = document.documentElement;
  const remembered = {
    get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("theme", theme); } catch { /* for this page only */ } },
  };
  if (["light", "dark"].includes(remembered.get())) root.dataset.theme = remembered.get();

  const make = (tag, text = "", attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };

  function theme() {
    const button = document.getElementById("page-theme");
    button.hidden = false;
    button.addEventListener("click", () => {
      const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
      const next = (root.dataset.theme || system) === "dark" ? "light" : "dark";
      root.dataset.theme = next;
      remembered.set(next);
    });
  }

  function menu() {
    const button = document.getElementById("page-menu");
    const sidebar = document.getElementById("page-sidebar");
    const show = (shown) => {
      sidebar.classList.toggle("shown", shown);
      button.setAttribute("aria-expanded", String(shown));
    };
    button.hidden = false;
    button.addEventListener("click", () => show(!sidebar.classList.contains("shown")));
    sidebar.addEventListener("click", (event) => event.target.closest("a") && show(false));
    addEventListener("keydown", (event) => event.key === "Escape" && show(false));
    const here = sidebar.querySelector("[aria-current]");
    if (here && here.offsetTop > sidebar.clientHeight) sidebar.scrollTop = here.offsetTop - 120;
  }

  // Search: entries are [page, title of the page, id, heading, text, all of it in lower case]
  let index = null;
  const load = () => {
    index ??= new Promise((done) => {
      const script = make("script", "", { src: `${own}/search.js` });
      script.onload = () => done(window.searchIndex.map((e) => [...e, `${e[1]} ${e[3]} ${e[4]}`.toLowerCase()]));
      document.head.append(script);
    });
    return index;
  };
  const singular = (word) => word.replace(/(?<=ss|[cs]h|x)es$|(?<=[a-z]{2}[^s])s$/, "");
  const score = ([, page, id, heading, , all], words) => {
    const phrase = words.join(" ");
    const title = heading.toLowerCase();
    const parts = title.split(/\W+/);
    let sum = 8 * (title === phrase) + 4 * all.includes(phrase);
    for (const word of words) {
      const one = singular(word);
      if (!all.includes(one)) return 0;
      sum += 1 + 6 * title.includes(one) + 6 * (parts.includes(word) || parts.includes(one));
      sum += 2 * page.toLowerCase().includes(one);
    }
    // What is written to be read comes before modules, whose title is a dotted name, and their names
    return /^\w+(\.\w+)+$/.test(page) || id.split(".").at(-1) === heading ? sum : 3 * sum;
  };
  function marked(text, words) {
    const found = make("span");
    const low = text.toLowerCase();
    const at = Math.max(0, Math.min(...words.map((w) => low.indexOf(w)).filter((i) => i >= 0)) - 50);
    let rest = (at > 0 && at < Infinity ? "…" : "") + text.slice(at < Infinity ? at : 0).slice(0, 170);
    while (rest) {
      const hits = words.map((w) => [rest.toLowerCase().indexOf(w), w.length]).filter(([i]) => i >= 0);
      const [start, length] = hits.sort((a, b) => a[0] - b[0] || b[1] - a[1])[0] ?? [rest.length, 0];
      found.append(rest.slice(0, start));
      if (length) found.append(make("mark", rest.slice(start, start + length)));
      rest = rest.slice(start + length);
    }
    return found;
  }
  function search() {
    const input = document.getElementById("page-search");
    const list = document.getElementById("page-results");
    input.closest(".search").hidden = false;
    let chosen = -1;
    const close = () => {
      list.hidden = true;
      input.setAttribute("aria-expanded", "false");
      input.removeAttribute("aria-activedescendant");
    };
    const choose = (i) => {
      const items = [...list.querySelectorAll("[role=option]")];
      if (!items.length) return;
      chosen = (i + items.length) % items.length;
      items.forEach((item, k) => item.setAttribute("aria-selected", String(k === chosen)));
      items[chosen].scrollIntoView({ block: "nearest" });
      input.setAttribute("aria-activedescendant", items[chosen].id);
    };
    const find = async () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      if (!words.length) return close();
      const entries = await load();
      const best = entries.map((e) => [score(e, words), e]).filter(([s]) => s);
      best.sort((a, b) => b[0] - a[0]);
      list.replaceChildren();
      best.slice(0, 20).forEach(([, [page, title, id, heading, text]], i) => {
        const item = make("li", "", { role: "option", id: `page-result-${i}`, "aria-selected": "false" });
        const link = make("a", "", { href: up + page + (id ? `#${id}` : ""), tabindex: "-1" });
        link.append(make("b", heading || title), make("small", heading && heading !== title ? title : ""));
        const about = make("small");
        about.append(marked(text, words.map(singular)));
        link.append(about);
        item.append(link);
        list.append(item);
      });
      if (!best.length) list.append(make("li", `Nothing about “${input.value}”`, { class: "none" }));
      list.hidden = false;
      input.setAttribute("aria-expanded", "true");
      chosen = -1;
    };
    input.addEventListener("focus", load);
    input.addEventListener("input", find);
    input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        choose(event.key === "ArrowDown" ? chosen + 1 : Math.max(chosen, 0) - 1);
      } else if (event.key === "Enter") {
        const link = list.querySelectorAll("a")[Math.max(chosen, 0)];
        if (!list.hidden && link) link.click();
      } else if (event.key === "Escape") {
        close();
        input.blur();
      }
    });
    list.addEventListener("click", (event) => event.target.closest("a") && close());
    document.addEventListener("click", (event) => event.target.closest(".search") || close());
    addEventListener("keydown", (event) => {
      const typing = /^(input|textarea|select)$/i.test(event.target.tagName ?? "");
      if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        input.focus();
      }
    });
  }

  // A click on a name lights up all its uses; a second one, and Enter, go to its definition
  function names() {
    const bar = document.getElementById("page-uses");
    let lit = [];
    let now = 0;
    const clear = () => {
      lit.forEach((use) => use.classList.remove("lit"));
      lit = [];
      bar.replaceChildren();
    };
    const step = (by) => {
      now = (now + by + lit.length) % lit.length;
      lit[now].scrollIntoView({ block: "center" });
      bar.querySelector("span").textContent = `${now + 1} of ${lit.length}`;
    };
    const light = (name) => {
      clear();
      lit = [...document.querySelectorAll(`[data-n="${name.dataset.n}"]`)];
      lit.forEach((use) => use.classList.add("lit"));
      now = lit.indexOf(name);
      const uses = lit.length === 1 ? "1 use here" : `${lit.length} uses here`;
      bar.replaceChildren(make("code", name.dataset.t), make("span", uses));
      if (lit.length > 1) {
        for (const [text, by, what] of [["↑", -1, "Previous use"], ["↓", 1, "Next use"]]) {
          const button = make("button", text, { type: "button", "aria-label": what });
          button.addEventListener("click", () => step(by));
          bar.append(button);
        }
      }
      const href = name.getAttribute("href");
      if (href) bar.append(make("a", "definition", { href }));
      const close = make("button", "×", { type: "button", "aria-label": "Close" });
      close.addEventListener("click", clear);
      bar.append(close);
    };
    document.addEventListener("click", (event) => {
      const name = event.target.closest(".code [data-n]");
      if (!name || event.ctrlKey || event.metaKey || event.shiftKey || String(getSelection())) return;
      // Of the keyboard a click has no count
      if (name.hasAttribute("href") && (!event.detail || name.classList.contains("lit"))) return;
      event.preventDefault();
      light(name);
    });
    addEventListener("keydown", (event) => event.key === "Escape" && clear());
  }

  addEventListener("DOMContentLoaded", () => { theme(); menu(); search(); names(); });
})();
