// Sort every group of a section's leaderboard by the clicked column; rows without a value stay at the end.
for (const button of document.querySelectorAll(".leaderboard thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const column = heading.cellIndex;
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    const sign = direction === "ascending" ? 1 : -1;
    const value = (row) => row.children[column].dataset.sort ?? "";
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : Number(x) < Number(y) ? -1 : Number(x) > Number(y) ? 1 : 0);
    };
    for (const table of button.closest("section").querySelectorAll(".leaderboard")) {
      const headings = [...table.tHead.rows[0].children];
      headings.forEach((other, place) => other.setAttribute("aria-sort", place === column ? direction : "none"));
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    }
  });
}
// A method's name in the key brings its curves to the fore, or back into line.
const keys = [...document.querySelectorAll(".key button")];
for (const key of keys) {
  key.addEventListener("click", () => {
    const chosen = key.getAttribute("aria-pressed") === "false";
    for (const other of keys) {
      const fore = chosen && other === key;
      other.setAttribute("aria-pressed", fore);
      for (const part of document.querySelectorAll(`#privacy-utility [id*="-${other.value}-"]`)) {
        part.style.opacity = chosen && !fore ? 0.12 : 1;
      }
    }
  });
}
// A link to a closed group, or to a section that begins with one, opens it.
const reveal = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target instanceof HTMLDetailsElement ? target : target && target.querySelector(":scope > details");
  if (folded) folded.open = true;
};
addEventListener("hashchange", reveal);
reveal();
// Paper has no disclosure triangles.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => { item.open = true; }));
// A table that is wider than its frame says so; a closed group has no width until it is opened.
const frames = new ResizeObserver((entries) => {
  for (const { target } of entries) target.classList.toggle("cut", target.scrollWidth > target.clientWidth + 1);
});
document.querySelectorAll(".scroll").forEach((frame) => frames.observe(frame));
