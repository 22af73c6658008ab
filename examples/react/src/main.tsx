// A hook `useSubscription(pattern)` in TypeScript, with the status of the connection, and Vite's proxy.
// Run: npm install --prefix examples/react && npm run dev --prefix examples/react
// Try: start examples/hello.py before; open http://localhost:5173; python examples/publish.py hello.world Hi
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";

import { useStatus, useSubscription } from "./nats";

function Messages({ pattern }: { pattern: string }) {
  const { messages, missed, error } = useSubscription<unknown>(pattern);
  return (
    <>
      {missed && <p>Some messages were missed.</p>}
      {error && <p role="alert">{error.message}</p>}
      <ul>
        {messages.map(({ subject, data }, index) => (
          <li key={messages.length - index}>{`${subject}: ${JSON.stringify(data)}`}</li>
        ))}
      </ul>
    </>
  );
}

function App() {
  const { state, transport, reason } = useStatus();
  const [isOpen, setOpen] = useState(true);
  return (
    <>
      <output>{[state, transport, reason].filter(Boolean).join(", ")}</output>
      <button onClick={() => setOpen(!isOpen)}>{isOpen ? "Hide" : "Show"}</button>
      {isOpen && <Messages pattern="hello.>" />}
    </>
  );
}

createRoot(document.querySelector("main")!).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
