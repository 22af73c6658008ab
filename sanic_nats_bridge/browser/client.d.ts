// What goes over the wire: docs/reference/protocol.md

export type NatsState = "connected" | "disconnected";
export type Action = "subscribe" | "unsubscribe" | "ping";

export interface Command {
  action?: Action;
  subjects?: string[];
  id?: string | number;
  session?: string;
}

export interface Welcome {
  type: "welcome";
  success: boolean;
  data: string;
  /** Secret to this client. */
  session: string;
  protocol: number;
  features: string[];
  /** Seconds. */
  heartbeat: number;
  nats: NatsState;
}

export interface Reply {
  type: "reply";
  id?: string | number;
  action?: Action;
  success: boolean;
  code?: string;
  message: string;
  subjects?: string[];
  /** Whether NATS has the interest already. */
  active?: boolean;
}

export interface Message<Data = any> {
  type: "message";
  subject: string;
  /** There where it came by a wildcard. */
  pattern?: string;
  data: Data;
  /** There where the payload is not JSON. */
  encoding?: "text" | "base64";
  headers?: Record<string, string[]>;
}

export interface Gap {
  type: "gap";
  subjects: string[];
  /** How many messages; `null` where that is not known. */
  lost: number | null;
  reason: "nats_reconnect" | "slow_consumer" | "internal";
}

export interface Unsubscribed {
  type: "unsubscribed";
  subjects: string[];
  code: string;
  message: string;
}

export interface Status {
  type: "status";
  nats: NatsState;
}

export interface Heartbeat {
  type: "heartbeat";
}

export interface Close {
  type: "close";
  code: number;
  reason: string;
  reconnect: boolean;
  /** Milliseconds. */
  retry?: number;
}

export type Frame = Welcome | Reply | Message | Gap | Unsubscribed | Status | Heartbeat | Close;

export type Transport = "websocket" | "sse";

export interface Options {
  /** Where the bridge is; the folder of the module itself by default. */
  url?: string | URL;
  /** Those to try, the best one first. */
  transports?: Transport[];
  /**
   * Called before the first connection, and whenever the bridge says that one is not authenticated any more.
   * It may renew a cookie; what it returns is added to the query of every request.
   */
  credentials?: () => Promise<Record<string, string> | void>;
  /** Tabs with the same key have one event stream together. Use the user's id. */
  share?: string;
  /** How long a transport may take while there is another one, in milliseconds; 3,000 by default. */
  timeout?: number;
  /** After how many milliseconds a better transport is tried again; 300,000 by default. */
  retryBetter?: number;
  /** For where there are none: those of `ws` and `eventsource`, in Node. */
  WebSocket?: unknown;
  EventSource?: unknown;
  fetch?: typeof fetch;
}

/** How the connection is. */
export interface ClientStatus {
  state: "connecting" | "connected" | "waiting" | "closed";
  /** The transport in use, or the one that is being tried. */
  transport: Transport;
  /** Whether the event stream is that of several tabs. */
  shared?: boolean;
  /** The bridge's connection to NATS. */
  nats?: NatsState;
  /** Why it is not the first transport; empty where it is. */
  why: string;
  /** Why there is no connection. */
  reason?: string;
  /** How long it waits now before it comes back, in milliseconds. */
  retry?: number;
  /** The close code with which it ended. */
  code?: number;
}

/** An error with the `code` of a failed reply, or `closed`, `disconnected`. */
export interface NatsError extends Error {
  code: string;
  subjects?: string[];
}

export interface Subscription<Data = any> extends AsyncIterable<Message<Data>> {
  readonly pattern: string;
  /** Resolves with the bridge's reply; rejects with a `NatsError`. */
  readonly ready: Promise<Reply>;
  /** Messages from now on. To leave the loop unsubscribes, where nobody else uses the subscription. */
  [Symbol.asyncIterator](): AsyncGenerator<Message<Data>, void, void>;
  unsubscribe(): void;
}

export interface ClientEvents {
  status: ClientStatus;
  /** Messages of these subjects were missed, or may have been; `reconnect` where the client itself was away. */
  gap: Gap | (Omit<Gap, "reason" | "lost"> & { lost: null; reason: "reconnect" });
  /** The bridge has refused these subscriptions, or has ended them. */
  unsubscribed: Unsubscribed;
  /** It is over: the client does not come back. */
  close: { code?: number; reason: string; final: boolean };
  /** Each frame as it came. */
  frame: Frame;
}

export type ClientEvent<Detail> = Event & { readonly detail: Detail };

export interface Client extends Omit<EventTarget, "addEventListener" | "removeEventListener"> {
  readonly status: ClientStatus;
  /** The first frame of the session that there is now. */
  readonly welcome: Welcome | null | undefined;

  /**
   * Follow a pattern. `onended` is called once: with an error where the bridge has refused or ended the
   * subscription, without one where the page has.
   */
  subscribe<Data = any>(
    pattern: string,
    callback?: ((data: Data, message: Message<Data>) => void) | null,
    onended?: ((error?: NatsError) => void) | null,
  ): Subscription<Data>;

  /** Send a command as it is; resolves with its reply, a failed one too. The client does not renew what it does. */
  send(command: Command): Promise<Reply>;

  close(): void;

  addEventListener<Type extends keyof ClientEvents>(
    type: Type,
    listener: ((event: ClientEvent<ClientEvents[Type]>) => void) | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<Type extends keyof ClientEvents>(
    type: Type,
    listener: ((event: ClientEvent<ClientEvents[Type]>) => void) | null,
    options?: boolean | EventListenerOptions,
  ): void;
}

export function connect(options?: Options): Client;
