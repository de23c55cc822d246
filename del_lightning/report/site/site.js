// A table shows the rows that every filter above it lets through.
for (const section of document.querySelectorAll("section")) {
  const filters = [...section.querySelectorAll(".filters select")];
  const apply = () => {
    for (const row of section.querySelectorAll(".leaderboard tbody tr")) {
      row.hidden = filters.some((filter) => filter.value && row.dataset[filter.dataset.key] !== filter.value);
    }
  };
  for (const filter of filters) filter.addEventListener("change", apply);
  if (filters.length) apply();
}
