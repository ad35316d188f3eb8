// The one server that this page talks to, and the key that it may want.

const KEY = "headrace-key"; // kept until the tab is closed
const door = document.getElementById("door");
const field = document.getElementById("key");

field.value = sessionStorage.getItem(KEY) ?? "";
door.addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, field.value);
});

/** A response that is 200; anything else is an Error in the server's words. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { headers, ...options });
  if (response.status === 401) door.hidden = false;
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* not ours: something between us and the server has answered */ }
  throw new Error(message);
}
