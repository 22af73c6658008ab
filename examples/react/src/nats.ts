import { useEffect, useState, useSyncExternalStore } from "react";
import { connect, type ClientStatus, type Message, type NatsError } from "sanic-nats-bridge";

// One client for the page. Components come and go; StrictMode mounts each of them twice.
const nats = connect({ url: "/nats/" });
import.meta.hot?.dispose(() => nats.close());

function onStatus(changed: () => void): () => void {
  nats.addEventListener("status", changed);
  return () => nats.removeEventListener("status", changed);
}

/** Return the status of the connection. */
export function useStatus(): ClientStatus {
  return useSyncExternalStore(onStatus, () => nats.status);
}

interface Received<Data> {
  messages: Message<Data>[];
  /** True if messages were missed, or may have been. */
  missed: boolean;
  /** The reason why the bridge has refused or ended the subscription. */
  error?: NatsError;
}

/** Subscribe to a pattern while the component is mounted. Return the last messages, the newest one first. */
export function useSubscription<Data>(pattern: string, limit = 100): Received<Data> {
  const [received, setReceived] = useState<Received<Data>>({ messages: [], missed: false });
  useEffect(() => {
    setReceived({ messages: [], missed: false });
    const subscription = nats.subscribe<Data>(
      pattern,
      (_, message) => setReceived((now) => ({ ...now, messages: [message, ...now.messages].slice(0, limit) })),
      (error) => error && setReceived((now) => ({ ...now, error })),
    );
    const ends = new AbortController();
    nats.addEventListener(
      "gap",
      ({ detail }) => detail.subjects.includes(pattern) && setReceived((now) => ({ ...now, missed: true })),
      { signal: ends.signal },
    );
    return () => {
      ends.abort();
      // The client sends what remains at the end of a turn: nothing, if the component is mounted again at once.
      subscription.unsubscribe();
    };
  }, [pattern, limit]);
  return received;
}
