// Runs before the first paint, so that a chosen theme never flashes the other one.  Everything else is a module.
try {
  const theme = JSON.parse(localStorage.getItem("glmserve.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is closed to this page: the system's theme it is
}
