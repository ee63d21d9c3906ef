// The filter of the scoreboard: by verdict, evidence, chapter and words. Without this script all rows are there.
"use strict";

addEventListener("DOMContentLoaded", () => {
  const table = document.getElementById("claims");
  if (!table) return;
  const rows = [...table.querySelectorAll("tr[id]")];
  const texts = new Map(rows.map(row => [row, `${row.id} ${row.textContent}`.toLowerCase()]));
  const chapter = row => row.parentElement.dataset.chapter;
  const form = document.createElement("form");
  form.className = "claims-filter";
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", "Filter the claims");

  function field(name, control) {
    const label = document.createElement("label");
    label.append(`${name} `, control);
    form.append(label);
    return control;
  }

  function choice(name, value, word = text => text) {
    const select = document.createElement("select");
    select.name = name;
    select.append(new Option("all", ""));
    for (const each of new Set(rows.map(value))) select.append(new Option(word(each), each));
    return field(name, select);
  }

  const title = name => table.querySelector(`[data-chapter="${name}"] th a`).textContent;
  const selects = [
    [choice("verdict", row => row.dataset.verdict), row => row.dataset.verdict],
    [choice("evidence", row => row.dataset.kind), row => row.dataset.kind],
    [choice("chapter", chapter, title), chapter],
  ];
  const search = document.createElement("input");
  search.type = "search";
  search.name = "words";
  search.placeholder = "Theorem 3, margin, …";
  field("words", search);
  const count = document.createElement("output");
  form.append(count);

  function apply() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      row.hidden = !(selects.every(([select, value]) => !select.value || select.value === value(row))
        && words.every(word => texts.get(row).includes(word)));
      shown += !row.hidden;
    }
    for (const body of table.tBodies) body.hidden = ![...body.rows].some(row => row.id && !row.hidden);
    count.textContent = `${shown} of ${rows.length} claims`;
  }

  form.addEventListener("input", apply);
  form.addEventListener("submit", event => event.preventDefault());
  // A link to a row that the filter hides shows it again.
  addEventListener("hashchange", () => {
    const row = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (row && row.hidden) {
      form.reset();
      apply();
      row.scrollIntoView();
    }
  });
  table.parentElement.before(form);
  apply();
});
