// What a link to a theorem, an equation or a glossary term leads to, shown beside the link: when the pointer rests on it
// or the keyboard reaches it. Escape closes. On a touch screen links are only links. The texts come from the finished
// pages (previews-data.js, loaded when first needed), so that nothing is asked of a network.
"use strict";

addEventListener("DOMContentLoaded", () => {
  const root = new URL(document.documentElement.dataset.content_root || "./", document.baseURI).href;
  const cache = new Map();  // from a target to its typeset text
  const box = document.createElement("div");
  box.className = "preview mathjax_process";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  document.body.append(box);
  let data = null, current = null, timer = 0;

  // "notebooks/01_counting.html#thm-counting", or "" for a link that has no preview.
  function target(link) {
    const url = new URL(link.href);
    const hash = decodeURIComponent(url.hash);
    url.hash = "";
    return url.href.startsWith(root) && hash ? url.href.slice(root.length) + hash : "";
  }

  function load() {
    data ||= new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = `${root}_static/previews-data.js`;
      script.onload = () => resolve(window.previews);
      script.onerror = reject;
      document.head.append(script);
    });
    return data;
  }

  async function typeset(key, html) {
    const text = document.createElement("div");
    text.innerHTML = html;
    for (const link of text.querySelectorAll("a[href]")) {
      if (!/^[a-z]+:/.test(link.getAttribute("href"))) link.href = root + link.getAttribute("href");
    }
    box.replaceChildren(text);
    box.style.visibility = "hidden";  // until it is placed
    box.hidden = false;
    await window.MathJax?.startup?.promise;
    await window.MathJax?.typesetPromise?.([text]);
    cache.set(key, text);
  }

  function place(link) {
    const at = link.getClientRects()[0], edge = 8;
    const width = document.documentElement.clientWidth;
    box.style.left = `${scrollX + Math.max(edge, Math.min(at.left, width - box.offsetWidth - edge))}px`;
    const below = at.bottom + edge + box.offsetHeight <= innerHeight || at.top < innerHeight / 2;
    box.style.top = `${scrollY + (below ? at.bottom + edge / 2 : at.top - box.offsetHeight - edge / 2)}px`;
  }

  async function show(link) {
    const key = target(link), html = (await load())[key];
    // A link inside the box that it would show says nothing new.
    if (!html || current !== link || link.closest(`[id="${CSS.escape(key.split("#")[1])}"]`)) return;
    if (cache.has(key)) box.replaceChildren(cache.get(key));
    else await typeset(key, html);
    if (current !== link) return;
    box.hidden = false;
    place(link);
    box.style.visibility = "";
  }

  function close() {
    clearTimeout(timer);
    current = null;
    box.hidden = true;
  }

  function later(what, milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(what, milliseconds);
  }

  function want(link, milliseconds) {
    if (link === current) return clearTimeout(timer);
    later(() => { current = link; box.hidden = true; show(link).catch(close); }, milliseconds);
  }

  const linked = event => {
    const link = event.target.closest?.(".bd-article a[href*='#']:not(.headerlink)");
    return link && target(link) ? link : null;
  };

  document.addEventListener("pointerover", event => {
    if (event.pointerType === "touch") return;
    const link = linked(event);
    if (link) want(link, 250);
    else if (box.contains(event.target)) clearTimeout(timer);
    else if (current || timer) later(close, 200);
  });
  document.addEventListener("focusin", event => {
    const link = linked(event);
    if (link && link.matches(":focus-visible")) want(link, 0);
    else if (current && !box.contains(event.target)) close();
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") close(); });
});
