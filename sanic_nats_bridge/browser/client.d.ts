// The types of the browser client. docs/reference/protocol.md describes the commands and the frames.

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
  /** The id of the session. Only its client may know it. */
  session: string;
  protocol: number;
  features: string[];
  /** Seconds within which the bridge sends at least one frame. */
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
  /** True if the bridge's NATS server has the subscription already. */
  active?: boolean;
}

export interface Message<Data = any> {
  type: "message";
  subject: string;
  /** The wildcard by which the message came, if any. */
  pattern?: string;
  data: Data;
  /** Missing if the payload is JSON. */
  encoding?: "text" | "base64";
  headers?: Record<string, string[]>;
}

export interface Gap {
  type: "gap";
  subjects: string[];
  /** The number of messages; `null` if it isn't known. */
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
  /** Milliseconds until the client should reconnect. */
  retry?: number;
}

export type Frame = Welcome | Reply | Message | Gap | Unsubscribed | Status | Heartbeat | Close;

export type Transport = "websocket" | "sse";

export interface Options {
  /** URL of the bridge; by default the folder of the module, if the bridge serves it. Its query goes with each request. */
  url?: string | URL;
  /** The transports to try, the best one first; by default `websocket` and `sse`. */
  transports?: Transport[];
  /**
   * Called before the first connection, by `reconnect`, when the bridge answers that the client isn't authenticated
   * (any more), and when a proxy asks for a login. It may renew a cookie. The result is added to the query of every
   * request.
   */
  credentials?: () => Promise<Record<string, string> | URLSearchParams | string | void>;
  /** Tabs with the same key share one event stream. Use the id of the user. */
  share?: string;
  /** Milliseconds until the client falls back to the next transport; 3,000 by default. */
  timeout?: number;
  /** Milliseconds until a better transport is tried again; 300,000 by default. */
  retryBetter?: number;
  /** The class to use instead of the global one, such as that of the package `ws` in Node. */
  WebSocket?: unknown;
  /** The class to use instead of the global one, such as that of the package `eventsource` in Node. */
  EventSource?: unknown;
  /** The function to use instead of the global one. */
  fetch?: typeof fetch;
}

/** The state of the connection. */
export interface ClientStatus {
  state: "connecting" | "subscribing" | "connected" | "waiting" | "closed";
  /** The transport in use, or the one that the client tries. */
  transport: Transport;
  /** True if the event stream is shared with other tabs. */
  shared?: boolean;
  /** The bridge's connection to NATS. */
  nats?: NatsState;
  /** The reason why it isn't the first transport; empty if it is. */
  why: string;
  /** The reason why there is no connection, or why a subscription has no reply. */
  reason?: string;
  /** Milliseconds that the client waits before it reconnects. */
  retry?: number;
  /** The close code with which the client ended. */
  code?: number;
}

/** An error with the `code` of a failed reply, or with `closed` or `disconnected`. */
export interface NatsError extends Error {
  code: string;
  subjects?: string[];
}

export interface Subscription<Data = any> extends AsyncIterable<Message<Data>> {
  readonly pattern: string;
  /** Resolves with the bridge's reply, or rejects with a `NatsError`. You may ignore it. */
  readonly ready: Promise<Reply>;
  /** Iterate over the messages from now on. Leaving the loop unsubscribes, unless a callback or another loop remains. */
  [Symbol.asyncIterator](): AsyncGenerator<Message<Data>, void, void>;
  /** End this subscription. Others with the same pattern remain. */
  unsubscribe(): void;
}

export interface ClientEvents {
  status: ClientStatus;
  /** Messages were missed, or may have been. The reason is `reconnect` if the client itself was disconnected. */
  gap: Gap | (Omit<Gap, "reason" | "lost"> & { lost: null; reason: "reconnect" });
  /** The bridge has refused or ended these subscriptions. */
  unsubscribed: Unsubscribed;
  /** The connection has ended, and the client doesn't reconnect. */
  close: { code?: number; reason: string; final: boolean };
  /** Each frame that was received. */
  frame: Frame;
}

export type ClientEvent<Detail> = Event & { readonly detail: Detail };

export interface Client extends Omit<EventTarget, "addEventListener" | "removeEventListener"> {
  readonly status: ClientStatus;
  /** The first frame of the current session. */
  readonly welcome: Welcome | null | undefined;

  /**
   * Follow a pattern. `onended` is called once: with an error if the bridge has refused or ended the subscription,
   * without one if the page has ended it.
   */
  subscribe<Data = any>(
    pattern: string,
    callback?: ((data: Data, message: Message<Data>) => void) | null,
    onended?: ((error?: NatsError) => void) | null,
  ): Subscription<Data>;

  /** Send a command as it is, and return its reply, also a failed one. Its effect isn't restored after a reconnect. */
  send(command: Command): Promise<Reply>;

  /**
   * Connect again in a new session, after asking for the credentials: after a login or a logout, for instance. The
   * subscriptions stay. A stream that tabs share has a new session for all of them.
   */
  reconnect(): void;

  /** End all subscriptions, and the connection. */
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

/** Connect to a bridge, and stay connected until the client is closed. */
export function connect(options?: Options): Client;
