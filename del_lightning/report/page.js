// Sort each group of the leaderboard by the clicked column; rows without a value stay at the end.
for (const button of document.querySelectorAll(".leaderboard thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    for (const other of heading.parentElement.children) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", direction);
    const value = (row) => row.children[heading.cellIndex].dataset.sort ?? "";
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : Number(x) < Number(y) ? -1 : Number(x) > Number(y) ? 1 : 0);
    };
    for (const body of heading.closest("table").tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
      body.append(...rows.sort(compare));
    }
  });
}
// Paper has no disclosure triangles.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => { item.open = true; }));
