"use strict";
// Draws what the element #figures says, in the colours of the page, with Chart.js.
(() => {
  const source = document.getElementById("figures");
  if (!source || !window.Chart) return;
  const figures = JSON.parse(source.textContent);
  const drawn = [];

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function draw(id, make) {
    const canvas = document.getElementById(id);
    if (canvas) drawn.push(new Chart(canvas, make()));
  }

  function options(x, y, more = {}) {
    const axis = (text, own) => ({
      title: { display: true, text, color: colour("--ink") },
      ticks: { color: colour("--ink") },
      grid: { color: colour("--line") },
      ...own,
    });
    return {
      animation: false,
      maintainAspectRatio: false,
      scales: { x: axis(x, more.x), y: axis(y, { beginAtZero: true, ...more.y }) },
      plugins: { legend: { display: more.legend ?? true, labels: { color: colour("--ink") } } },
    };
  }

  const levels = figures.classes.map((_, k) => k);
  const share = { min: 0, max: 1 };

  function bars(label, data, name, more = {}) {
    return { type: "bar", label, data, backgroundColor: colour(name), grouped: false, ...more };
  }

  function line(label, data, name) {
    return { type: "line", label, data, borderColor: colour(name), backgroundColor: colour(name) };
  }

  function histogram(k) {
    const counts = figures.histograms[k];
    const centres = counts.map((_, i) => ((i + 0.5) / counts.length).toFixed(2));
    return { labels: centres, datasets: [bars("answers", counts, "--first", { categoryPercentage: 1, barPercentage: 1 })] };
  }

  function drawAll() {
    drawn.splice(0).forEach((chart) => chart.destroy());
    draw("confidence", () => ({
      data: {
        labels: levels,
        datasets: [
          line("mean", figures.mean, "--third"),
          bars("25–75%", figures.quantiles.map((q) => [q[1], q[3]]), "--first", { barPercentage: 0.5 }),
          bars("5–95%", figures.quantiles.map((q) => [q[0], q[4]]), "--second", { barPercentage: 0.25 }),
          bars("images tagged there", figures.labelled, "--faint", { barPercentage: 0.95 }),
        ],
      },
      options: options("hierarchy", "P_k, share", { y: share }),
    }));
    draw("classes", () => ({
      data: { labels: levels, datasets: [bars("classes", figures.classes, "--first")] },
      options: options("hierarchy", "classes", { legend: false }),
    }));
    const which = document.getElementById("which");
    draw("histogram", () => ({
      data: histogram(which ? which.selectedIndex : 0),
      options: options("P_k", "answers", { legend: false, x: { grid: { display: false } } }),
    }));
    draw("agreement", () => ({
      data: {
        labels: levels,
        datasets: [
          line("same most probable class", figures.same_top, "--first"),
          line("mean change of P_k", figures.confidence_change, "--third"),
        ],
      },
      options: options("hierarchy", "share", { y: share }),
    }));
  }

  drawAll();
  document.getElementById("which")?.addEventListener("change", drawAll);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
