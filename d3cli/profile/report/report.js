"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const states = [
    "skipped", "MLP dropped", "attention dropped", "without low planes", "without one low plane", "run",
  ];
  // The charts come in the light theme's colours. These replace them in the dark theme.
  const dark = {
    "#1c2430": "#e6eaf0", "#5b6675": "#9aa6b5", "#dde2e9": "#2c3441", "#2f6fd0": "#6ba3f5",
    "#c77d0a": "#eaa43c", "#8453c5": "#b48cf0", "#2a8a64": "#55c093", "#eceff3": "#262d38",
    "#7ea7e6": "#4a72ae", "#b7cff4": "#34507a",
  };
  const wantsDark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;

  const isDark = () => (chosen === null ? wantsDark.matches : chosen);

  const painted = (value) => {
    if (typeof value === "string") return (isDark() && dark[value]) || value;
    if (Array.isArray(value)) return value.map(painted);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, painted(one)]));
  };

  const labelled = (trace, labels) => {
    if (trace.type === "heatmap") {
      trace.text = trace.z.map((row, layer) =>
        row.map((state, at) => `layer ${layer}: ${states[state] ?? "not recorded"}<br>${labels[at]}`));
    } else if (trace.customdata) {
      trace.text = trace.customdata.map((step) => labels[step]);
    }
    return trace;
  };

  const draw = () => {
    document.documentElement.dataset.theme = isDark() ? "dark" : "light";
    for (const place of document.querySelectorAll("section:not([hidden]) .chart")) {
      const reply = data[place.dataset.reply];
      const chart = reply.charts[place.dataset.chart];
      const layout = painted(chart.layout);
      place.style.height = `${chart.height}px`;  // plotly fills the box
      layout.hoverlabel = {
        align: "left", bgcolor: isDark() ? "#2c3441" : "#ffffff",
        font: { color: isDark() ? "#e6eaf0" : "#1c2430" },
      };
      Plotly.react(place, painted(chart.traces).map((one) => labelled(one, reply.labels)), layout,
        { responsive: true, displayModeBar: false });
    }
  };

  document.getElementById("theme").addEventListener("click", () => {
    chosen = !isDark();
    draw();
  });
  wantsDark.addEventListener("change", draw);

  const choose = document.getElementById("choose");
  if (choose) {
    choose.addEventListener("change", () => {
      document.querySelectorAll("section.reply").forEach((section, at) => {
        section.hidden = at !== Number(choose.value);
      });
      draw();
    });
  }

  for (const title of document.querySelectorAll("th")) {
    title.addEventListener("click", () => {
      const up = title.getAttribute("aria-sort") !== "ascending";
      for (const other of title.parentNode.children) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", up ? "ascending" : "descending");
      const body = title.closest("table").tBodies[0];
      const at = title.cellIndex;
      const key = (row) => {
        const cell = row.cells[at];
        return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
      };
      // Missing values are last in either direction.
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const less = typeof x === "number" && typeof y === "number"
          ? x - y : String(x).localeCompare(String(y));
        return up ? less : -less;
      };
      body.append(...[...body.rows].sort(order));
    });
  }

  draw();
})();
