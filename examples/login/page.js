import { connect } from "/nats/client.js";

const list = document.querySelector("ul");
const show = (line) => {
  const row = document.createElement("li");
  row.textContent = line;
  list.prepend(row);
};
const nats = connect();

nats.addEventListener("status", ({ detail }) => {
  document.querySelector("output").textContent = detail.state;
});
// The login has expired, or the user has logged out in another tab.
nats.addEventListener("close", () => {
  list.replaceChildren();
  document.querySelector("a").hidden = false;
});

for (const pattern of ["me.>", "team.>", "news.>"]) {
  nats.subscribe(pattern, (data, { subject }) => show(`${subject}: ${JSON.stringify(data)}`));
}
